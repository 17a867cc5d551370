"""Top-p and top-k of a large vocabulary, told from few of its tokens, keep what a sort of all keeps."""

import math

import pytest
import torch
from torch import Tensor

from llamita.sampling import top_p
from llamita.sampling.filters import keep_top_k, keep_top_p
from llamita.sampling.likelihoods import likelihoods
from llamita.sampling.sampler import draw, pick

ROWS, VOCABULARY = 6, 5003


def rows_of(spread: float, *, seed: int = 0) -> Tensor:
    """Logits whose distributions are the sharper the larger the spread is."""
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def sorted_top_p(logits: Tensor, p: Tensor | float, keep: int = 1) -> Tensor:
    """What transformers keeps."""
    ascending, order = logits.sort()
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - p
    removed[..., -keep:] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 0.95, 0.999])
def test_top_p_equals_a_sort_of_all(p: float, keep: int) -> None:
    for seed, spread in enumerate((0.1, 1.0, 4.0, 9.0)):
        logits = rows_of(spread, seed=seed)
        for given in (logits, logits.round(), logits.round(decimals=2), keep_top_k(logits, 40)):
            assert torch.equal(keep_top_p(given, p, min_tokens_to_keep=keep), sorted_top_p(given, p, keep))


def test_rows_have_shares_of_their_own() -> None:
    logits, shares = rows_of(5.0), [0.5, 0.9, 0.99, 0.2, 0.95, 0.7]
    expected = [sorted_top_p(row[None], share) for row, share in zip(logits, shares, strict=True)]
    assert torch.equal(keep_top_p(logits, shares), torch.cat(expected))


def test_only_rows_in_doubt_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = list[int]()
    sort = top_p.least_of_sorted
    monkeypatch.setattr(
        top_p, "least_of_sorted", lambda logits, *rest: (counts.append(len(logits)), sort(logits, *rest))[1]
    )
    logits = rows_of(6.0)
    logits[2, :2000] = logits[2].max()  # a tie at the border
    assert torch.equal(keep_top_p(logits, 0.9), sorted_top_p(logits, 0.9))
    assert counts == [1]


@pytest.mark.parametrize("k", [1, 7, 40, 150, 200, 4999])
def test_top_k_equals_torch(k: int) -> None:
    for logits in (rows_of(2.0), rows_of(2.0).round(), keep_top_k(rows_of(2.0), 50)):
        expected = logits.masked_fill(logits < logits.topk(k).values[:, -1:], -math.inf)
        assert torch.equal(keep_top_k(logits, k), expected)


@pytest.mark.parametrize("k", [1, 3, 500, 5000])
def test_a_draw_among_few_is_that_among_all(k: int) -> None:
    logits = keep_top_k(rows_of(3.0), k)
    for seed in range(20):
        both = [[torch.Generator().manual_seed(ROWS * seed + row) for row in range(ROWS)] for _ in "ab"]
        alone = [pick(row, own) for row, own in zip(likelihoods(logits), both[0], strict=True)]
        assert torch.equal(draw(logits, both[1]), torch.cat(alone))
