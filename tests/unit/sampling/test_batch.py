"""Rows sampled together get the tokens that each gets alone, and use up the same random numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.errors import UsageError
from llamita.sampling.batch import alone, sample
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import Sampler

SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 0.0},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
    {"do_sample": True, "temperature": 0.7, "top_p": 0.5, "top_k": 9},
    {"do_sample": True, "temperature": 1.5, "min_p": 0.1},
    {"do_sample": True, "typical_p": 0.5},
    {"do_sample": True, "epsilon_cutoff": 0.02, "eta_cutoff": 0.1, "top_h": 0.6},
    {"do_sample": True, "xtc_probability": 0.5},
    {"do_sample": True, "mirostat": 2, "mirostat_tau": 2.0},
    {"repetition_penalty": 1.4},
    {"do_sample": True, "presence_penalty": 0.8, "temperature": 0.9},
    {"do_sample": True, "logit_bias": {3: 4.0}},
]


def sampler(number: int, row: int) -> Sampler:
    """A sampler of one row, seeded by it."""
    return Sampler(SamplingParams(**SETTINGS[number]), History.begin(torch.tensor([[row, 3, 5]])), seed=row)


@given(st.lists(st.integers(0, len(SETTINGS) - 1), min_size=1, max_size=9), st.integers(0, 5))
def test_rows_that_join_and_leave_get_what_they_get_alone(numbers: list[int], seed: int) -> None:
    together, apart = ([sampler(number, row) for row, number in enumerate(numbers)] for _ in range(2))
    dice = torch.Generator().manual_seed(seed)
    for step in range(6):
        there = [row for row in range(len(numbers)) if (row + step) % 4]  # another batch each time
        logits = 3 * torch.randn(len(there), 23, generator=dice)
        found = sample([together[row] for row in there], logits)
        assert found == [alone(apart[row], line[None]) for row, line in zip(there, logits, strict=True)]


def test_a_row_that_raises_leaves_the_others_their_tokens() -> None:
    bad = Sampler(SamplingParams(logit_bias={999: 1.0}), History.begin(torch.tensor([[1]])))
    tokens = sample([sampler(0, 0), bad, sampler(2, 1)], torch.eye(3, 23))
    assert (tokens[0], type(tokens[1])) == (0, UsageError)
    assert isinstance(tokens[2], int)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_only_what_reads_nothing_but_logits_is_taken_together(number: int) -> None:
    key = sampler(number, 0).filters
    reads_more = SETTINGS[number].keys() & {
        "xtc_probability", "mirostat", "repetition_penalty", "presence_penalty", "logit_bias",
    }  # fmt: skip
    assert (key is None) == bool(reads_more)
