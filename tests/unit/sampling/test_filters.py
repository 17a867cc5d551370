"""Filters leave rows alone that are off, XTC takes the top but what is protected, mirostat holds its target."""

import math

import pytest
import torch
from torch import Tensor

from llamita.sampling import filters, top_p
from llamita.sampling.filters import exclude_top_choices
from llamita.sampling.mirostat import Mirostat, keep_unsurprising, surprise
from llamita.sampling.per_row import EachRow, PerRow, column, listed, mapped
from llamita.sampling.sampler import draw

OFF_AND_ON: list[tuple[filters.Filter, list[float | None]]] = [
    (filters.scale, [1.0, 0.5, None, 0.0, 2.0]),
    (filters.keep_top_h, [0.0, 0.5, None, 0.1, 1.0]),
    (filters.keep_top_k, [0, 5, None, 1, 97]),
    (filters.keep_top_p, [1.0, 0.5, None, 0.0, 0.9]),
    (filters.keep_min_p, [0.0, 0.5, None, 0.1, 1.0]),
    (filters.keep_typical, [1.0, 0.5, None, 0.1, 0.9]),
    (filters.cut_epsilon, [0.0, 0.5, None, 0.1, 0.01]),
    (filters.cut_eta, [0.0, 0.5, None, 0.1, 0.01]),
]


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(5, 97) * 3


@pytest.mark.parametrize(("function", "values"), OFF_AND_ON, ids=[pair[0].__name__ for pair in OFF_AND_ON])
def test_rows_that_are_off_stay_bit_for_bit(
    function: filters.Filter, values: list[float | None], logits: Tensor
) -> None:
    logits[0, :4] = torch.tensor([-math.inf, -0.0, 1e-40, -1e30])  # what arithmetic or a cut could touch
    result = function(logits, values)
    for row, value in enumerate(values):
        is_on = function.does_something(value)
        assert torch.equal(result[row], logits[row]) != is_on or value in (97, 1.0)
        assert torch.equal(result[row : row + 1], function(logits[row : row + 1], value))
    assert function(logits, values[0]) is function(logits, [values[0]] * 5) is logits
    assert function(logits, None) is logits
    assert function.__doc__


@pytest.mark.parametrize(("function", "values"), OFF_AND_ON[2:], ids=[pair[0].__name__ for pair in OFF_AND_ON[2:]])
def test_filters_leave_the_least_number_of_tokens(
    function: filters.Filter, values: list[float | None], logits: Tensor
) -> None:
    for value in values:
        kept = function(logits, value, min_tokens_to_keep=4).isfinite()
        assert (kept.sum(-1) >= 4).all()
        if function is not filters.keep_typical:  # it goes by how typical a token is, not how likely
            assert kept.gather(1, logits.topk(4).indices).all()


@pytest.mark.parametrize("look", ["least_logit", "least_of_sorted", "least_of_top"])
def test_top_p_is_the_same_with_and_without_torchs_sort(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_p, "SORTED_AT_ONCE", 0)
    told_by = getattr(top_p, look)
    monkeypatch.setattr(top_p, "least_logit", told_by)
    cases = [torch.randn(3, 700) * spread for spread in (0.01, 1.0, 4.0, 30.0)]
    cases += [cases[1].round(), cases[2].masked_fill(cases[2] < 1.5, -math.inf), torch.zeros(3, 700)]
    shares = [0.0, 0.2, [0.5, 0.9, 0.99], 0.9999, 1 / 700]
    settings = [(case, share, least) for case in cases for share in shares for least in (1, 5)]
    sums = cases[2].double().softmax(-1).sort(descending=True).values.cumsum(-1)
    settings += [(cases[2], sums[:, place].tolist(), 1) for place in range(60)]  # borders that rounding decides
    quick = [filters.keep_top_p(case, share, min_tokens_to_keep=least) for case, share, least in settings]
    rests = [column(mapped(share, lambda p: 1 - p), case) for case, share, _ in settings]
    looked = zip(settings, rests, strict=True)
    told = sum(told_by(case, rest, least) is not None for (case, _, least), rest in looked)
    assert 15 < told < len(settings) - 5
    monkeypatch.setattr(top_p, "least_logit", lambda *_: None)
    for (case, share, least), result in zip(settings, quick, strict=True):
        assert torch.equal(result, filters.keep_top_p(case, share, min_tokens_to_keep=least))


def test_min_p_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert filters.keep_min_p(probabilities.log(), 0.2).isfinite().tolist() == [[True, True, True, False]]
    assert filters.keep_min_p(probabilities.log(), 0.5).isfinite().tolist() == [[True, True, False, False]]


def xtc_of_one_row(probabilities: list[float], threshold: float, protected: set[int]) -> set[int]:
    """Which tokens a row loses, from the definition: all choices at or above the threshold but the least likely."""
    top = [token for token, p in sorted(enumerate(probabilities), key=lambda pair: -pair[1]) if p >= threshold]
    lost = set(top[:-1])
    return set() if lost & protected else lost


def test_xtc_takes_the_top_choices() -> None:
    logits = torch.randn(40, 23)
    for threshold in (0.02, 0.05, 0.1, 0.4, 0.6):
        result = exclude_top_choices(logits, 1.0, threshold, protected=torch.tensor([3, 8]))
        for row, filtered in zip(logits, result, strict=True):
            lost = set(filtered.isinf().nonzero()[:, 0].tolist())
            assert lost == xtc_of_one_row(row.softmax(-1).tolist(), threshold, {3, 8})
            assert torch.equal(filtered[filtered.isfinite()], row[filtered.isfinite()])


def test_xtc_acts_as_often_as_it_is_told() -> None:
    logits = torch.tensor([0.4, 0.35, 0.25]).log().repeat(4000, 1)
    acted = exclude_top_choices(logits, 0.3, 0.2, protected=torch.tensor([], dtype=torch.long)).isinf().any(-1)
    assert abs(acted.float().mean() - 0.3) < 0.03


def test_xtc_draws_from_the_rows_own_generators(logits: Tensor) -> None:
    chances, none = [0.5, 0.0, 0.5, 1.0, 0.5], torch.tensor([], dtype=torch.long)
    before = torch.get_rng_state()

    def run(rows: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        steps = [
            exclude_top_choices(
                logits[rows], [chances[row] for row in rows], 0.01, protected=none, generators=generators
            )
            for _ in range(9)
        ]
        return torch.stack(steps, dim=1)

    together = run([0, 1, 2, 3, 4])
    assert torch.equal(together, torch.cat([run([row]) for row in range(5)]))
    assert torch.equal(together[1], logits[1].expand(9, -1))
    assert torch.equal(torch.get_rng_state(), before)
    assert exclude_top_choices(logits, 0.0, 0.1, protected=none) is logits


def test_mirostat_by_hand() -> None:
    """One row in plain Python: cut by surprise, then move the limit by the error."""
    logits = torch.randn(1, 30) * 2
    state = Mirostat(1, mode=2, tau=2.0, eta=0.3, device="cpu")
    mu = 4.0
    for token in (3, 7, 1):
        probabilities = logits[0].double().softmax(-1).tolist()
        kept = {t for t, p in enumerate(probabilities) if -math.log2(p) <= mu} or {int(logits.argmax())}
        result = state(logits)
        assert set(result[0].isfinite().nonzero()[:, 0].tolist()) == kept
        chosen = sorted(kept)[token % len(kept)]
        mass = sum(probabilities[t] for t in kept)
        mu -= 0.3 * (-math.log2(probabilities[chosen] / mass) - 2.0)
        state.observe(result, torch.tensor([chosen]))
        assert state.mu.item() == pytest.approx(mu, rel=1e-5)


def test_mirostat_holds_the_surprise_row_by_row() -> None:
    logits = (-torch.arange(1, 400).float().log() * 1.1).repeat(3, 1)  # Zipf
    state = Mirostat(3, mode=[2, 0, 2], tau=[2.0, 5.0, 4.0], eta=0.2, device="cpu")
    total = torch.zeros(3)
    for _ in range(300):
        filtered = state(logits)
        assert torch.equal(filtered[1], logits[1])
        tokens = draw(filtered)
        total += surprise(filtered, tokens)
        state.observe(filtered, tokens)
    assert total[0] / 300 == pytest.approx(2.0, abs=0.3)
    assert total[2] / 300 == pytest.approx(4.0, abs=0.3)
    assert state.mu[1] == math.inf


def test_mirostat_leaves_one_token(logits: Tensor) -> None:
    kept = keep_unsurprising(logits, torch.full((5,), -1.0)).isfinite()
    assert torch.equal(kept.nonzero()[:, 1], logits.argmax(-1))


@pytest.mark.parametrize("value", [2.0, torch.tensor(2.0), [2.0, 2.0], torch.tensor([2.0, 2.0]), (2.0, 2.0)])
def test_one_value_or_one_a_row(value: PerRow) -> None:
    assert listed(value, 2) == [2.0, 2.0]
    assert torch.as_tensor(column(value, torch.zeros(2, 3))).expand(2, 1).tolist() == [[2.0], [2.0]]
    assert listed([None, 1.0], 2, off=0.5) == [0.5, 1.0]
    assert EachRow("abc").select([2, 0, 0]) == EachRow("caa")


def test_top_k_and_top_p_as_one_equal_both_in_turn() -> None:
    numbers, told, ties = torch.Generator().manual_seed(0), 0, 0
    for number in range(600):
        row = torch.randn(1, 97, generator=numbers) * (1 + number % 5)
        row = row.bfloat16().float() if number % 2 else row  # equal tokens at the borders
        for k, p in ((5, 0.9), (20, 0.5), (60, 0.99), (200, 0.9)):
            both, apart = filters.keep_top_k_and_p(row, k, p), filters.keep_top_p(filters.keep_top_k(row, k), p)
            assert both is None or torch.equal(both, apart)
            told += both is not None
            ties += bool((row == row[apart > -math.inf].min()).sum() > 1)
    assert told > 1500 and ties > 30
