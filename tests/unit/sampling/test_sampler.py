"""Filters keep what their definitions say, and a seeded row does not notice its batch mates."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.sampling.filters import keep_top_k, keep_top_p, scale
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import Sampler, draw, pick


def sampler(rows: int, *, seed: int | list[int] | None = None, **settings: Any) -> Sampler:
    """A sampler of so many rows, whose prompts do not matter."""
    history = History.begin(torch.zeros(rows, 1, dtype=torch.long))
    return Sampler(SamplingParams(do_sample=True, **settings), history, seed=seed)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 97) * 3


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def test_top_k_keeps_the_likeliest_and_ties() -> None:
    row = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(keep_top_k(row, 2)) == [{1, 2, 3}]
    assert kept(keep_top_k(row, 1)) == [{1}]
    assert kept(keep_top_k(row, 1, min_tokens_to_keep=4)) == [{0, 1, 2, 3}]
    assert kept(keep_top_k(row, 0)) == kept(keep_top_k(row, 9)) == [{0, 1, 2, 3, 4}]


def test_top_p_is_the_smallest_set_that_reaches_p(logits: Tensor) -> None:
    for p in (0.1, 0.5, 0.9, 0.999):
        for row, chosen in zip(logits, kept(keep_top_p(logits, p)), strict=True):
            probabilities = row.double().softmax(-1)
            likeliest = probabilities.sort(descending=True)
            needed = int((likeliest.values.cumsum(-1) < p).sum()) + 1
            assert chosen == set(likeliest.indices[:needed].tolist())
    assert kept(keep_top_p(logits, 0.0, min_tokens_to_keep=3)) == kept(keep_top_k(logits, 3))


@pytest.mark.parametrize(
    "filters",
    [(scale, [0.5, 1.0, 2.0, 0.1, 7.0]), (keep_top_k, [1, 0, 5, 97, 200]), (keep_top_p, [0.0, 0.3, 0.9, 0.99, 1.0])],
    ids=["scale", "top_k", "top_p"],
)
def test_a_setting_a_row_is_that_row_alone(filters: tuple, logits: Tensor) -> None:
    apply, values = filters
    together = apply(logits, values)
    assert torch.equal(together, apply(logits, torch.tensor(values)))
    for row, value in enumerate(values):
        assert torch.allclose(together[row], apply(logits[row : row + 1], value)[0], rtol=1e-6)
        assert kept(together[row : row + 1]) == kept(apply(logits[row : row + 1], value))


def test_seeded_rows_are_drawn_alone(logits: Tensor) -> None:
    seeds = [7, 8, 7, 9, 10]
    settings = {"temperature": 1.3, "top_k": 40, "top_p": 0.95}
    together = sampler(5, seed=seeds, **settings)
    steps = torch.stack([together(logits) for _ in range(20)], dim=1)
    for row, seed in enumerate(seeds):
        alone = sampler(1, seed=seed, **settings)
        assert steps[row].tolist() == [int(alone(logits[row : row + 1])) for _ in range(20)]
    pair = sampler(2, seed=7)
    assert pair(logits[[0, 0]]).unique().numel() == 1


def test_seeds_leave_the_global_generator_alone(logits: Tensor) -> None:
    before = torch.get_rng_state()
    sampler(5, seed=1)(logits)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5), -math.inf]])
    generator = torch.Generator().manual_seed(1)
    counts = torch.bincount(torch.cat([draw(logits, [generator]) for _ in range(8000)]), minlength=4) / 8000
    assert torch.allclose(counts, torch.tensor([1, 2, 5, 0]) / 8, atol=0.02)


def test_a_draw_never_takes_what_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **options: torch.ones(1, dtype=options["dtype"]))
    assert int(pick(torch.tensor([0.25, 0.5, 0.0, 0.0]), torch.Generator())) == 1
    monkeypatch.setattr(torch, "rand", lambda *_, **options: torch.zeros(1, dtype=options["dtype"]))
    assert int(pick(torch.tensor([0.0, 0.5, 0.5, 0.0]), torch.Generator())) == 1


def test_temperature_zero_is_greedy_row_by_row(logits: Tensor) -> None:
    likeliest = logits.argmax(-1)
    assert torch.equal(sampler(5, temperature=0.0, top_p=0.1)(logits), likeliest)
    mixed = sampler(5, temperature=[0.0, 1.0, 0.0, 5.0, 0.0], seed=3)
    steps = torch.stack([mixed(logits) for _ in range(50)])  # (steps, B)
    assert (steps[:, [0, 2, 4]] == likeliest[[0, 2, 4]]).all()
    assert (steps[:, 3] != likeliest[3]).any()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 1.5},
     {"top_p": "high"}, {"temperature": [1.0]}, {"seed": [1]}, {"seed": 2**64}, {"top_k": True}],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        sampler(2, **wrong)


def test_the_least_temperatures_are_greedy_and_warn_of_nothing(logits: Tensor) -> None:
    row = logits[:1]
    for settings in ({"top_k": 4, "top_p": 0.9}, {"top_p": 0.9}, {"top_k": 4}, {"min_p": 0.1}):
        for temperature in (1e-38, 1e-45, 5e-324):
            assert sampler(1, seed=1, temperature=temperature, **settings)(row).item() == int(row.argmax())
