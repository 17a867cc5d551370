"""Where rows stand: of every mask that kernels can follow, the slots of the tokens that it shows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.context.batch import BatchLayout


def slots_of(layout: BatchLayout, row: int, tokens: int) -> list[int]:
    """The slots of a row's tokens, from its first to the last of the new ones."""
    start, first = (int(x) if isinstance(x, int) else int(x[row]) for x in (layout.start, layout.first))
    count = start + tokens
    if layout.tables is None:
        return [first + i for i in range(count)]
    entries = layout.tables[int(torch.as_tensor(layout.origin)[row]) :]
    return [int(entries[i]) for i in range(count)]


def test_no_mask_shows_all() -> None:
    layout = BatchLayout.of_mask(None, rows=2, cached=5, tokens=3)
    assert layout is not None and layout.tables is None
    assert slots_of(layout, 1, 3) == list(range(8))


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 3)), min_size=1, max_size=4))
def test_holes_and_paddings_leave_the_slots_that_are_shown(rows: list[tuple[list[bool], int]]) -> None:
    """Four cached slots of any kind; of three new ones the first so many are padding where nothing was shown before."""
    mask = torch.tensor([[*old, *[any(old) or i >= padding for i in range(3)]] for old, padding in rows])
    layout = BatchLayout.of_mask(mask, rows=len(rows), cached=4, tokens=3)
    assert layout is not None
    for row, shown in enumerate(mask):
        assert slots_of(layout, row, 3) == shown.nonzero()[:, 0].tolist()


def test_the_last_of_the_new_tokens_may_be_none() -> None:
    layout = BatchLayout.of_mask(torch.tensor([[1, 0, 1, 1, 0]]), rows=1, cached=3, tokens=2)
    assert layout is not None and slots_of(layout, 0, 2) == [0, 2, 3, 4]


def test_a_later_part_of_a_pass_begins_later() -> None:
    layout = BatchLayout.of_mask(torch.tensor([[0, 1, 1, 1]]), rows=1, cached=1, tokens=3)
    assert layout is not None and layout.later(0) is layout
    assert slots_of(layout.later(2), 0, 1) == slots_of(layout, 0, 3) == [1, 2, 3]


OTHERS = {
    "a new token is hidden before another": ([[1, 1, 0, 1]], 1),
    "holes among new tokens": ([[0, 0, 1, 0, 1]], 1),
    "too short": ([[1, 1, 1]], 0),
    "four axes": ([[[[0, 0, 0, 0]]]], 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_have_no_layout(name: str) -> None:
    mask, cached = OTHERS[name]
    assert BatchLayout.of_mask(torch.tensor(mask), rows=1, cached=cached, tokens=4 - cached) is None
