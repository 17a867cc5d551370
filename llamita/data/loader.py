"""Batches of packed rows, in an order that a seed and the epoch decide; its position is one integer."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.context.packed import positions_in
from llamita.data.documents import IGNORED
from llamita.data.packing import Rows
from llamita.errors import UsageError


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step: inputs, targets and positions, each (B, T) int64. Positions start at 0 in each text.

    Fields that some tasks have, float32. labels: what the task knows of each token's document. reference, old:
    log-probabilities (B, T) of the targets by the reference model, and by the model that sampled them. baseline:
    (B, 1), what a reward is compared with.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    labels: Tensor | None = None
    reference: Tensor | None = None
    old: Tensor | None = None
    baseline: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def learned(self) -> int:
        """How many tokens are learned: what the summed loss is divided by."""
        return int((self.targets != IGNORED).sum())

    def split(self, rows: int) -> "list[Batch]":
        """The batch in parts of at most `rows` rows, in order."""
        return [self._each(lambda tensor, at=at: tensor[at : at + rows]) for at in range(0, len(self.inputs), rows)]

    def columns(self, number: int, count: int) -> "Batch":
        """Part `number` of `count` equal ones of every row."""
        return self._each(lambda tensor: tensor.chunk(count, dim=1)[number])

    def padded(self, rows: int) -> "Batch":
        """The batch with as many rows as that; those that are added learn nothing."""
        more = rows - len(self)
        padded = self._each(lambda tensor: F.pad(tensor, (0, 0, 0, more)))
        padded.targets[len(self) :] = IGNORED
        return padded

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]


class Source(Protocol):
    """What a run reads its batches from. position: rows read since the first, which is all that it remembers."""

    position: int

    @property
    def fingerprint(self) -> str:
        """What tells the data from other data."""
        ...

    def __len__(self) -> int:
        """The rows of an epoch."""
        ...

    def next(self, count: int) -> Batch:
        """The next `count` rows, which depend on the position and the data alone; the position moves on."""
        ...


class Loader:
    """Reads rows epoch after epoch, each epoch in another order.

    position: how many rows were read since the first. It is the whole state: the rows of a batch depend on it, the
    seed and the data alone, not on the size of the batches before. Raises UsageError for no rows.
    """

    def __init__(self, rows: Rows, *, seed: int, position: int = 0) -> None:
        if not len(rows):
            raise UsageError("the data has no rows to train on: give more text")
        self.rows, self.seed, self.position = rows, seed, position
        self._epoch, self._order = -1, list[int]()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the data."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self.rows.fingerprint()

    def next(self, count: int) -> Batch:
        """The next `count` rows; the position moves on."""
        first, self.position = self.position, self.position + count
        index = torch.tensor([self._row(position) for position in range(first, first + count)], device="cpu")
        return take(self.rows, index)

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(len(self.rows), seed=self.seed, epoch=epoch)
        return self._order[index]


def take(rows: Rows, index: Tensor) -> Batch:
    """The batch of some rows, by their numbers (B,)."""
    documents = rows.documents[index].long()
    labels, reference = (None if part is None else part[index] for part in (rows.labels, rows.reference))
    inputs, targets = rows.inputs[index].long(), rows.targets[index].long()
    return Batch(inputs, targets, positions_in(documents), labels, reference)


def joined(parts: list[Batch]) -> Batch:
    """The rows of several batches of the same fields, one after another."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Batch))
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def order(count: int, *, seed: int, epoch: int) -> list[int]:
    """The numbers below `count`, by their hashes: the same order on every machine and in every version."""
    keys = [blake2b(f"{seed}:{epoch}:{number}".encode(), digest_size=8).digest() for number in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def held_out(count: int, *, share: float, seed: int) -> set[int]:
    """The numbers of the documents to measure on rather than train on: a share of them, but never all."""
    return set(order(count, seed=seed, epoch=-1)[: min(round(share * count), count - 1)])
