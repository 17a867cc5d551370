"""The texts of packed rows."""

import torch

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch
from llamita.train.tasks.texts import last_tokens, learned_counts, pair_count, pairs, sums, text_numbers

# Row 0: a pair of 2 and 3 tokens, padding. Row 1: two pairs of single tokens, no padding left but two tokens.
POSITIONS = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 0, 0, 0, 0, 1]])
TARGETS = torch.tensor([[IGNORED, 5, 6, IGNORED, 7, IGNORED], [1, 2, 3, 4, IGNORED, IGNORED]])
BATCH = Batch(torch.zeros(2, 6, dtype=torch.long), TARGETS, POSITIONS)


def test_numbers_sums_and_pairs() -> None:
    assert text_numbers(POSITIONS).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 4]]
    assert learned_counts(BATCH).tolist() == [[1, 2, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    values = torch.arange(12.0).view(2, 6)
    assert [part.tolist() for part in pairs(sums(values, BATCH), BATCH)] == [[1.0, 6.0, 8.0], [9.0, 7.0, 9.0]]
    assert pair_count(BATCH) == 3
    assert last_tokens(BATCH).int().tolist() == [[0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0]]
