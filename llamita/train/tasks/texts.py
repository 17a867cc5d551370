"""The texts of packed rows: which token is whose, and sums over each."""

import torch
from torch import Tensor

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch


def text_numbers(positions: Tensor) -> Tensor:
    """The number of each token's text in its row, from 0; padding is a text: (B, T) -> (B, T)."""
    return (positions == 0).cumsum(1) - 1


def sums(values: Tensor, batch: Batch) -> Tensor:
    """The sum over each text of values (B, T): (B, texts), 0 where a row has fewer."""
    numbers = text_numbers(batch.positions)
    count = int(numbers.max()) + 1
    total = values.new_zeros(len(values), count + count % 2)  # an even number, for pairs
    return total.scatter_add(1, numbers, values)


def learned_counts(batch: Batch) -> Tensor:
    """How many tokens of each text are learned: (B, texts)."""
    return sums((batch.targets != IGNORED).long(), batch)


def pairs(values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The values (B, texts) of the first and the second text of each pair, both (pairs,), padding left out."""
    is_pair = learned_counts(batch)[:, 0::2] > 0
    return values[:, 0::2][is_pair], values[:, 1::2][is_pair]


def pair_count(batch: Batch) -> int:
    """How many pairs a batch has."""
    return int((learned_counts(batch)[:, 0::2] > 0).sum())


def last_tokens(batch: Batch) -> Tensor:
    """Which tokens are the last of a text that is learned: bool (B, T)."""
    numbers = text_numbers(batch.positions)
    is_last = torch.ones_like(numbers, dtype=torch.bool)
    is_last[:, :-1] = numbers[:, 1:] != numbers[:, :-1]
    return is_last & (learned_counts(batch).gather(1, numbers) > 0)
