"""Drafts that branch: each sees its own line and no other."""

import pytest
import torch
from torch import Tensor

from llamita.cache import DynamicCache
from llamita.config import LlamaConfig
from llamita.context.tree import Tree, lineage, visible
from llamita.model.llama import LlamaForCausalLM

PARENTS = [-1, -1, 0, 0, 1, 2, 4]


def test_lineage() -> None:
    assert lineage(PARENTS) == [[0], [1], [0, 2], [0, 3], [1, 4], [0, 2, 5], [1, 4, 6]]
    assert lineage([]) == []


def test_visible() -> None:
    real = torch.tensor([[True, False, True]])
    drawn = ["".join(".X"[seen] for seen in row) for row in visible(real, lineage([-1, -1, 0]))[0].tolist()]
    assert drawn == ["X.....", "X.....", "X.X...", "X.XX..", "X.X.X.", "X.XX.X"]


@pytest.fixture
def text() -> tuple[Tensor, Tensor]:
    """Two texts with holes, (B, 6) tokens and which are real."""
    real = torch.ones(2, 6, dtype=torch.bool)
    real[0, 3] = real[1, 0] = real[1, 4] = False
    return torch.randint(0, 97, (2, 6)), real


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cached", [0, 5, 8])
def test_every_line_is_a_text_of_its_own(
    tiny_config: LlamaConfig, text: tuple[Tensor, Tensor], backend: str, window: int | None, cached: int
) -> None:
    (tokens, real), drafts = text, torch.randint(0, 97, (2, len(PARENTS)))
    model = LlamaForCausalLM(tiny_config.replace(sliding_window=window, attn_implementation=backend)).eval()
    scale, cache = tiny_config.head_dim**-0.5, DynamicCache()
    new = torch.cat((tokens, drafts), dim=1)
    if cached:  # read in two passes
        parents = PARENTS[: max(cached - 6, 0)]
        first = Tree(real[:, :cached], parents, cache, backend=backend, scale=scale, window=window)
        model(new[:, :cached], context=first)
    tree = Tree(real, PARENTS, cache, backend=backend, scale=scale, window=window)
    logits = model(new[:, cached:], context=tree).logits
    for row in range(2):
        for number, line in enumerate(lineage(PARENTS)):
            if 6 + number >= cached:
                alone = torch.cat((tokens[row][real[row]], drafts[row, line]))[None]
                torch.testing.assert_close(
                    logits[row, number - len(PARENTS)], model(alone).logits[0, -1], rtol=1e-4, atol=1e-5
                )
