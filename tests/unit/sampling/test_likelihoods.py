"""The exponentials that a draw reads: the bits of the reference, and of no row beside."""

import math

import pytest
import torch

from llamita.kernels import reference
from llamita.sampling.likelihoods import likelihoods, log_softmax


@pytest.mark.parametrize("size", [1, 15, 33, 1000])
def test_they_have_the_bits_of_the_reference(size: int) -> None:
    logits = torch.randn(3, size) * 10
    logits[1, : size // 2] = -torch.inf
    expected = reference.exponential(logits - logits.amax(-1, keepdim=True))
    expected[logits.isneginf()] = 0
    for _ in range(2):  # a program is kept for the shape
        assert torch.equal(likelihoods(logits), expected)
    assert torch.equal(likelihoods(logits[1:2].t().contiguous().t()), expected[1:2])


def test_they_are_near_to_probabilities_times_a_number() -> None:
    logits = torch.randn(2, 500) * 5
    likely = likelihoods(logits)
    torch.testing.assert_close(likely / likely.sum(-1, keepdim=True), logits.softmax(-1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_gives_nan(bad: float) -> None:
    logits = torch.randn(2, 40)
    logits[1, 3] = bad
    assert bool(likelihoods(logits)[1].isnan().any())
    assert bool(likelihoods(torch.full((1, 9), -torch.inf)).isnan().all())


def test_log_softmax_is_one_rounding_of_exact_steps() -> None:
    logits = 4 * torch.randn(5, 301, generator=torch.Generator().manual_seed(2))
    found = log_softmax(logits)
    sums = [math.fsum(row) for row in likelihoods(logits).double().tolist()]
    expected = (logits.double() - logits.amax(-1, keepdim=True).double()) - torch.tensor(
        sums, dtype=torch.float64
    ).log()[:, None]
    torch.testing.assert_close(found, expected.float(), rtol=2**-23, atol=0)
    torch.testing.assert_close(found, logits.log_softmax(-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(found[2:3], log_softmax(logits[2:3]))
    logits[0, 3] = math.inf
    assert bool(log_softmax(logits)[0].isnan().any())
