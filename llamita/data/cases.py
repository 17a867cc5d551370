"""Prompts and their answers, found again in packed rows: what a model is asked, to see what it has learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch


@dataclass(frozen=True, slots=True)
class Case:
    """A text of a batch: its token ids, and which of them are learned; the first never is."""

    ids: list[int]
    is_learned: list[bool]

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first that is learned."""
        return self.ids[: self.is_learned.index(True)]

    @property
    def answer(self) -> list[int]:
        """The tokens from the first that is learned."""
        return self.ids[self.is_learned.index(True) :]

    @property
    def has_one_answer(self) -> bool:
        """Whether all that is learned stands at the end, after a prompt."""
        first = self.is_learned.index(True)
        return first > 1 and all(self.is_learned[first:])


def cases(batch: Batch) -> Iterator[Case]:
    """The texts of a batch of which something is learned, in order."""
    for inputs, targets, positions in zip(batch.inputs, batch.targets, batch.positions, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(inputs)]
        for first, stop in pairwise(starts):
            if bool((targets[first:stop] != IGNORED).any()):
                yield _case(inputs[first:stop], targets[first:stop])


def _case(inputs: Tensor, targets: Tensor) -> Case:
    learned = (targets != IGNORED).tolist()
    last = int(targets[-1]) if learned[-1] else None
    ids, is_learned = inputs.tolist(), [False, *learned[:-1]]
    return Case(ids, is_learned) if last is None else Case([*ids, last], [*is_learned, True])
