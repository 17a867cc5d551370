"""A watermark is found where it was written, and nowhere else."""

import math

import pytest
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.watermark import Watermark, WatermarkingConfig, detect

V = 97
CONFIGS = [
    WatermarkingConfig(bias=3.0),
    WatermarkingConfig(bias=3.0, context_width=2, hashing_key=9),
    WatermarkingConfig(bias=3.0, seeding_scheme="selfhash"),
    WatermarkingConfig(bias=3.0, seeding_scheme="selfhash", context_width=3),
]


def written(config: WatermarkingConfig | None, *, rows: int = 2, length: int = 50) -> Tensor:
    """Texts (B, T) drawn from random logits, marked or not."""
    mark = None if config is None else Watermark(config)
    text = torch.randint(0, V, (rows, 4))
    for _ in range(length):
        logits = torch.randn(rows, V)
        logits = logits if mark is None else mark(logits, text)
        text = torch.cat((text, torch.multinomial(logits.softmax(-1), 1)), dim=1)
    return text[:, 4:]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_marks_are_found_and_only_marks(config: WatermarkingConfig) -> None:
    marked, plain = detect(written(config), config, vocabulary=V), detect(written(None), config, vocabulary=V)
    assert marked.prediction.all()
    assert not plain.prediction.any()
    assert (marked.p_value < 1e-3).all()
    assert (plain.p_value > 1e-3).all()
    assert torch.equal(marked.confidence, 1 - marked.p_value)
    assert torch.allclose(
        marked.p_value,
        torch.tensor([0.5 * math.erfc(z / 2**0.5) for z in marked.z_score.tolist()], dtype=torch.float64),
    )


def test_lists_have_their_share_and_depend_on_the_context() -> None:
    mark = Watermark(WatermarkingConfig(greenlist_ratio=0.5))
    lists = [set(mark.green(torch.tensor([token]), V).tolist()) for token in (1, 2, 1)]
    assert lists[0] == lists[2] != lists[1]
    assert {len(green) for green in lists} == {int(V * 0.5)}


def test_a_row_shorter_than_the_context_is_not_marked() -> None:
    logits = torch.zeros(2, V)
    marked = Watermark(WatermarkingConfig(context_width=3))(logits, torch.tensor([[-1, 4, 5], [3, 4, 5]]))
    assert torch.equal(marked[0], logits[0])
    assert (marked[1] > 0).sum() == int(V * 0.25)


@pytest.mark.parametrize(
    "wrong",
    [{"seeding_scheme": "right"}, {"greenlist_ratio": 0.0}, {"greenlist_ratio": 1.0}, {"context_width": 0}],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        WatermarkingConfig(**wrong)


def test_texts_that_cannot_be_scored_are_refused() -> None:
    config = WatermarkingConfig(context_width=2)
    with pytest.raises(UsageError, match="at least 3"):
        detect(torch.ones(2, 2, dtype=torch.long), config, vocabulary=V)
    with pytest.raises(UsageError, match="alike"):
        detect(torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5]]), config, vocabulary=V, bos_token_id=1)
