"""Packing: documents of any length in rows of one length, with as little padding as there can be."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from llamita.data.documents import IGNORED, Document
from llamita.errors import UsageError

MOST_WASTE = 0.02  # above this share of padding, texts are cut to fill rows


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a document, by its number."""

    document: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows: inputs, targets and document numbers, each (N, T) int32; padding is a document of its own.

    The numbers count the texts of a row from 0; a target is IGNORED where nothing is learned. labels: what the task
    knows of each token's document, float32. reference: log-probabilities (N, T) of the targets by a reference model.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor
    labels: Tensor | None = None
    reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def fingerprint(self) -> str:
        """The sha256 of all rows, by which a run knows its data again."""
        digest = sha256()
        labels = () if self.labels is None else (self.labels,)
        for part in (self.inputs, self.targets, self.documents, *labels):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


def pack(documents: Sequence[Document], length: int) -> Rows:
    """Pack documents into rows of `length` tokens, each document whole where that wastes little.

    Raises UsageError for a document that may not be cut and is longer than a row.
    """
    documents = parts(documents, length)
    rows = plan(documents, length)
    inputs = torch.zeros(len(rows), length, dtype=torch.int32, device="cpu")
    targets = torch.full_like(inputs, IGNORED)
    numbers = torch.empty_like(inputs)
    labels = torch.zeros(inputs.shape, dtype=torch.float32, device="cpu")
    for row, pieces in enumerate(rows):
        at, number = 0, 0
        for piece in pieces:
            document, stop = documents[piece.document], at + len(piece)
            inputs[row, at:stop] = document.inputs[piece.start : piece.stop]
            targets[row, at:stop] = document.targets[piece.start : piece.stop]
            labels[row, at:stop] = document.label
            for start in document.starts:
                numbers[row, at + start : stop] = number
                number += 1
            at = stop
        numbers[row, at:] = number  # of the padding
    return Rows(inputs, targets, numbers, labels if labels.any() else None)


def parts(documents: Sequence[Document], length: int) -> list[Document]:
    """The documents, those longer than a row cut into parts of a row. Raises UsageError where one may not be cut."""
    return [part for document in documents for part in _parts(document, length)]


def _parts(document: Document, length: int) -> list[Document]:
    if len(document) <= length:
        return [document]
    if not document.is_splittable:
        raise UsageError(
            f"{document.where} has {len(document)} tokens, a row {length}: shorten it, or pass --length {len(document)}"
        )
    pairs = zip(document.inputs.split(length), document.targets.split(length), strict=True)
    return [replace(document, inputs=inputs, targets=targets) for inputs, targets in pairs]


def plan(documents: Sequence[Document], length: int) -> list[list[Piece]]:
    """Which pieces each row holds: best fit, longest first; then texts are cut until the waste is at most 2 %.

    No document is longer than a row: see `parts`.
    """
    pieces = [Piece(number, 0, len(document)) for number, document in enumerate(documents)]
    rows: list[list[Piece]] = []
    gaps: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for piece in sorted(pieces, key=len, reverse=True):
        found = bisect_left(gaps, (len(piece), 0))
        free, row = gaps.pop(found) if found < len(gaps) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        if free > len(piece):
            insort(gaps, (free - len(piece), row))
    return _filled(rows, documents, length)


def _filled(rows: list[list[Piece]], documents: Sequence[Document], length: int) -> list[list[Piece]]:
    """The rows, the emptiest of them taken apart to fill the others, as long as too much is padding."""
    order = sorted(rows, key=lambda row: -sum(map(len, row)))
    total = sum(len(piece) for row in rows for piece in row)
    while len(order) > 1 and total < (1 - MOST_WASTE) * len(order) * length:
        donor = order[-1]
        free = len(order) * length - total - length + sum(map(len, donor))
        if free < sum(map(len, donor)) or not all(documents[piece.document].is_splittable for piece in donor):
            break
        order.pop()
        _pour(donor, order, length)
    return order


def _pour(donor: list[Piece], rows: list[list[Piece]], length: int) -> None:
    """Put the pieces of one row into the gaps of others, cut where they do not fit."""
    waiting = list(reversed(donor))
    for row in reversed(rows):  # the emptiest first, so that few pieces are cut
        free = length - sum(map(len, row))
        while waiting and free:
            piece = waiting.pop()
            middle = piece.start + min(free, len(piece))
            row.append(Piece(piece.document, piece.start, middle))
            free -= middle - piece.start
            if middle < piece.stop:
                waiting.append(Piece(piece.document, middle, piece.stop))
