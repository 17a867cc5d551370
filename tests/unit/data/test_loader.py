"""Batches and their order."""

import pytest
import torch

from llamita.data.documents import IGNORED
from llamita.data.loader import Loader, held_out, order
from llamita.data.packing import Rows
from llamita.errors import UsageError

ROWS = Rows(
    torch.arange(20, dtype=torch.int32).view(5, 4),
    torch.full((5, 4), IGNORED, dtype=torch.int32).index_fill(1, torch.tensor([0, 2]), 7),
    torch.tensor([[0, 0, 1, 1]] * 5, dtype=torch.int32),
)


def test_a_batch_has_positions_of_documents_and_is_split_by_rows() -> None:
    batch = Loader(ROWS, seed=0).next(5)
    assert batch.positions.tolist() == [[0, 1, 0, 1]] * 5
    assert batch.learned == 10
    assert [len(part.inputs) for part in batch.split(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([part.inputs for part in batch.split(2)]), batch.inputs)


def test_the_order_is_the_seed_s_and_the_epoch_s_and_never_changes() -> None:
    assert order(5, seed=0, epoch=0) == [1, 3, 4, 0, 2]
    assert order(50, seed=0, epoch=1) != order(50, seed=0, epoch=0) != order(50, seed=1, epoch=0)


def test_some_documents_are_held_out_but_never_all() -> None:
    assert held_out(1, share=0.5, seed=0) == set()
    assert len(held_out(100, share=0.05, seed=0)) == 5
    assert held_out(100, share=0, seed=0) == set()


def test_no_rows_are_refused() -> None:
    empty = torch.empty(0, 4, dtype=torch.int32)
    with pytest.raises(UsageError, match="no rows to train on"):
        Loader(Rows(empty, empty, empty), seed=0)


def test_a_batch_is_split_along_its_rows() -> None:
    batch = Loader(ROWS, seed=0).next(5)
    parts = [batch.columns(number, 2) for number in range(2)]
    for name in ("inputs", "targets", "positions"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], dim=1), getattr(batch, name))
    assert parts[1].reference is None
