"""Rows in blocks attend as rows in a cache of their own."""

import pytest
import torch

from llamita.cache.dynamic import DynamicCache
from llamita.cache.paged import PagedCache
from llamita.config import LlamaConfig
from llamita.context.batch import BatchLayout
from llamita.context.paged import Paged
from llamita.model.llama import LlamaForCausalLM

TABLES = [[5, 2, 9], [1, 0], [7, 8, 3, 4]]
TEXTS = [11, 3, 13]


@pytest.fixture
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    """A model without kernels."""
    return LlamaForCausalLM(tiny_config).eval()


def paged(pages: PagedCache, config: LlamaConfig, starts: list[int], counts: list[int]) -> Paged:
    """The context of some rows."""
    return Paged(pages, starts=starts, counts=counts, tables=TABLES, scale=config.softmax_scale)


@pytest.mark.parametrize("size", [4, 16])
def test_ragged_rows(model: LlamaForCausalLM, size: int) -> None:
    config = model.config
    pages = PagedCache(config, num_blocks=10, block_size=size, dtype=torch.float32, device="cpu")
    texts = [torch.randint(config.vocab_size, (1, length)) for length in TEXTS]
    cuts = [[0, 5, 6, 11], [0, 1, 2, 3], [0, 9, 12, 13]]
    caches = [DynamicCache() for _ in texts]
    with torch.no_grad():
        for step in range(3):
            starts, ends = [cut[step] for cut in cuts], [cut[step + 1] for cut in cuts]
            new = [text[:, a:b] for text, a, b in zip(texts, starts, ends, strict=True)]
            context = paged(pages, config, starts, [b - a for a, b in zip(starts, ends, strict=True)])
            found = model(torch.cat(new, dim=1), context=context, logits_to_keep=context.last).logits[0]
            alone = [model(ids, past_key_values=cache).logits[0, -1] for ids, cache in zip(new, caches, strict=True)]
            torch.testing.assert_close(found, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_a_layout_has_the_rows_of_a_level(tiny_config: LlamaConfig) -> None:
    pages = PagedCache(tiny_config, num_blocks=10, block_size=4, dtype=torch.float32, device="cpu")
    context = paged(pages, tiny_config, [3, 0, 8], [1, 1, 4])
    assert context.positions.tolist() == [[3, 0, 8, 9, 10, 11]]
    assert context.last.tolist() == [0, 1, 5]
    assert [standing(layout) for layout in context.layouts] == [([3, 0, 8], [1, 1, 4], [0, 1, 2], TABLES)]
    scale = tiny_config.softmax_scale
    context = Paged(pages, starts=[3, 0, 8], counts=[1, 1, 4], tables=TABLES, scale=scale, levels=[1, 0, 1])
    assert [standing(layout) for layout in context.layouts] == [
        ([0], [1], [1], TABLES[1:2]), ([3, 8], [1, 4], [0, 2], TABLES[::2])
    ]  # fmt: skip


@pytest.mark.parametrize("wanted", [[False, True, True], [True, False, False], [False, False, False]])
def test_logits_are_those_of_the_wanted_rows(model: LlamaForCausalLM, wanted: list[bool]) -> None:
    pages = PagedCache(model.config, num_blocks=10, block_size=8, dtype=torch.float32, device="cpu")
    rows = {"starts": [0, 0, 0], "counts": [2, 1, 4], "tables": TABLES, "scale": model.config.softmax_scale}
    of_all, of_some = Paged(pages, **rows), Paged(pages, **rows, wanted=wanted)
    ids = torch.randint(model.config.vocab_size, (1, 7))
    with torch.no_grad():
        every, some = (model(ids, context=one, logits_to_keep=one.last).logits[0] for one in (of_all, of_some))
    expected = every[wanted] if any(wanted) else every[-1:]  # one is made at least
    torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-5)


def standing(layout: BatchLayout) -> tuple[object, ...]:
    """Starts, counts, first tokens and page tables of a layout."""
    assert layout.spans is not None
    assert layout.tables is not None
    return layout.start, *map(list, layout.spans), [*map(list, layout.tables)]


def test_blocks_are_copied_up_to_a_token(tiny_config: LlamaConfig) -> None:
    pages = PagedCache(tiny_config, num_blocks=3, block_size=4, dtype=torch.float32, device="cpu")
    keys, _ = pages.buffers[1]
    keys[:] = torch.arange(12.0).view(3, 1, 4, 1)
    pages.copy(2, 0, 3)
    assert keys[:, 1, :, 2].flatten().tolist() == [8, 9, 10, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert pages.slots([2, 0], 1, 6).tolist() == [9, 10, 11, 0, 1]
    layers, heads, width = 3, 2, 10
    assert PagedCache.block_bytes(tiny_config, block_size=4, dtype=torch.float32) == 2 * layers * heads * width * 4 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [4, 16, 32])
def test_what_is_written_is_read(tiny_config: LlamaConfig, size: int, dtype: torch.dtype) -> None:
    pages = PagedCache(tiny_config, num_blocks=3, block_size=size, dtype=dtype, device="cpu")
    slots = torch.randperm(3 * size)[: 2 * size]
    keys, values = torch.randn(2, 2, len(slots), 10).to(dtype)
    pages.write(1, slots, keys, values)
    assert all(map(torch.equal, pages.read(1, slots), (keys, values)))
    assert pages.is_tiled == (size >= 16)
    pages.copy(0, 2, size - 1)
    first = [pages.read(1, pages.slots([block], 0, size - 1)) for block in (0, 2)]
    assert all(map(torch.equal, *first))
