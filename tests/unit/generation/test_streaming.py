"""A streamer hears every strategy: column by column what is returned, for one prompt and for several."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.generation.streaming import ColumnStreamer
from llamita.model.llama import LlamaForCausalLM

WAYS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"num_beams": 3},
    {"num_beams": 3, "do_sample": True, "early_stopping": True},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 0.3},
    {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    {"assistant_early_exit": 2, "draft_tree": (2, 1)},
    {"assistant_early_exit": 2, "do_sample": True},
]


class Heard:
    """A streamer that keeps everything."""

    def __init__(self) -> None:
        self.prompts: Tensor | None = None
        self.columns: list[Tensor] = []
        self.is_over = False

    def put(self, value: Tensor) -> None:
        assert not self.is_over
        if self.prompts is None:
            self.prompts = value
        else:
            self.columns.append(value)

    def end(self) -> None:
        self.is_over = True


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config.replace(initializer_range=0.25, eos_token_id=list(range(20, 26)), pad_token_id=0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_heard_is_what_is_returned(model: LlamaForCausalLM, way: dict[str, Any], rows: int) -> None:
    ids = torch.randint(3, 97, (rows, 7), generator=torch.Generator().manual_seed(1))
    heard = Heard()
    written = model.generate(ids, max_new_tokens=17, streamer=heard, **way)
    assert heard.is_over and heard.prompts is not None
    assert heard.prompts.tolist() == ids.tolist()
    assert torch.stack(heard.columns, dim=1).tolist() == written[:, 7:].tolist()


def test_columns_come_as_soon_as_all_rows_have_them() -> None:
    told: list[list[int]] = []
    lockstep = ColumnStreamer(3, lambda step: told.append(step.tolist()), fill=9)
    lockstep.push([[1, 2], [3], []], [False] * 3)
    assert told == []
    lockstep.push([[], [], [4]], [False, True, False])
    assert told == [[1, 3, 4]]
    lockstep.push([[], [], [5, 6]], [False, True, False])
    assert told[1:] == [[2, 9, 5]]
    lockstep.push([[], [], []], [True] * 3)
    assert told[2:] == [[9, 9, 6]]
