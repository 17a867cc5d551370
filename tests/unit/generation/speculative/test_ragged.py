"""Rows that grow unequally: holes, and closing them."""

import pytest
import torch
from torch import Tensor

from llamita.cache import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.errors import UsageError
from llamita.generation.speculative.ragged import RaggedBatch


def ragged() -> RaggedBatch:
    """Two prompts, one padded, that went on by three tokens and by one."""
    text = RaggedBatch(torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    text.append(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, True], [False, False]]))
    text.append(torch.tensor([[10], [11]]), torch.tensor([[True], [True]]))
    return text


def numbered(slots: int, kind: type[DynamicCache] = DynamicCache) -> DynamicCache:
    """A cache that holds the numbers of its slots."""
    cache = kind()
    numbers = torch.arange(float(slots))[None, None, :, None].expand(2, 1, -1, 1)
    cache.update(numbers, -numbers, 0)
    cache.append_positions(torch.arange(slots).expand(2, -1))
    return cache


def test_rows_and_history() -> None:
    text = ragged()
    assert text.width == 6
    assert [text.row(row).tolist() for row in (0, 1)] == [[5, 6, 1, 2, 10], [7, 8, 9, 11]]
    history = text.history()
    assert history.tokens.tolist() == [[5, 6, 1, 2, 10], [-1, 7, 8, 9, 11]]
    assert history.prompt.tolist() == [[5, 6, -1, -1, -1], [-1, 7, 8, 9, -1]]
    assert history.written_counts == [3, 1]


def held(cache: DynamicCache) -> list[list[int]]:
    (keys, values), positions = next(iter(cache)), cache.positions
    assert torch.equal(keys, -values)
    assert positions is not None and torch.equal(positions, keys[:, 0, :, 0].long())
    return positions.tolist()


@pytest.mark.parametrize("kind", [DynamicCache, GrowingCache])
@pytest.mark.parametrize(("behind", "left"), [(0, [[1, 2, 3, 4], [4, 0, 1, 2]]), (1, [[1, 2, 3], [3, 0, 1]])])
def test_compacting_moves_tokens_and_caches_alike(behind: int, left: list[list[int]], kind: type[DynamicCache]) -> None:
    text, target, draft = ragged(), numbered(5, kind), numbered(5 - behind, kind)
    assert text.holes() == 2
    text.compact([target, draft], tolerated=0.1)
    assert [text.row(row).tolist() for row in (0, 1)] == [[5, 6, 1, 2, 10], [7, 8, 9, 11]]
    assert held(draft) == left  # what it had of the second row's last token moved out of its slots, to be read again
    assert held(target) == [[1, 2, 3, 4], [4, 0, 1, 2]]
    assert text.width == target.length + 1
    assert text.holes() == 0


def test_few_holes_stay() -> None:
    text, cache = ragged(), numbered(5)
    text.compact([cache], tolerated=0.5)
    assert (text.width, cache.length) == (6, 5)


def test_a_mask_of_another_shape_is_refused() -> None:
    ids: Tensor = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(UsageError, match=r"\(1, 4\) and the ids \(1, 3\)"):
        RaggedBatch(ids, torch.ones(1, 4))
