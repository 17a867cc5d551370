"""The losses of preferences, each against the formula of its paper in plain Python."""

import math

import pytest
import torch

from llamita.train.tasks.preference_losses import PAIR_LOSSES, Pairs, kto, log_complement
from llamita.train.tasks.task import TaskOptions

CHOSEN, REJECTED = (-3.0, -20.5, -7.25), (-4.5, -11.0, -7.0)
REFERENCE_CHOSEN, REFERENCE_REJECTED = (-3.5, -18.0, -9.0), (-4.0, -12.5, -6.0)
TOKENS, OTHER_TOKENS = (3, 9, 4), (5, 2, 7)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo(number: int, beta: float, smoothing: float = 0.0) -> float:
    """Equation 7 of arXiv:2305.18290; with smoothing, the mean of both orders, as cDPO has it."""
    won = CHOSEN[number] - REFERENCE_CHOSEN[number]
    lost = REJECTED[number] - REFERENCE_REJECTED[number]
    right = -math.log(sigmoid(beta * won - beta * lost))
    return (1 - smoothing) * right + smoothing * -math.log(sigmoid(beta * lost - beta * won))


def ipo(number: int, beta: float, smoothing: float = 0.0) -> float:
    """Equation 17 of arXiv:2310.12036: h is the log of the ratio of ratios."""
    h = math.log(
        (math.exp(CHOSEN[number]) * math.exp(REFERENCE_REJECTED[number]))
        / (math.exp(REJECTED[number]) * math.exp(REFERENCE_CHOSEN[number]))
    )
    return (h - 1 / (2 * beta)) ** 2


def orpo(number: int, beta: float, smoothing: float = 0.0) -> float:
    """Equations 3 to 7 of arXiv:2403.07691: P is the geometric mean over tokens, odds(P) = P / (1 - P)."""
    won = math.exp(CHOSEN[number] / TOKENS[number])
    lost = math.exp(REJECTED[number] / OTHER_TOKENS[number])
    ratio = (won / (1 - won)) / (lost / (1 - lost))
    return -CHOSEN[number] / TOKENS[number] + beta * -math.log(sigmoid(math.log(ratio)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("formula", [dpo, ipo, orpo])
def test_pair_losses_are_their_papers(formula: object, beta: float, smoothing: float) -> None:
    values = (CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED, TOKENS, OTHER_TOKENS)
    found = Pairs(*(torch.tensor(numbers, dtype=torch.float64) for numbers in values))
    losses = PAIR_LOSSES[formula.__name__].of(found, TaskOptions(beta=beta, label_smoothing=smoothing))  # type: ignore[attr-defined]
    for number, loss in enumerate(losses.tolist()):
        assert loss == pytest.approx(formula(number, beta, smoothing), rel=1e-12)  # type: ignore[operator]


def test_kto_is_its_paper_s() -> None:
    """Equation 8 of arXiv:2402.01306, with both weights 1: lambda_y - v(x, y)."""
    rewards, z0, beta = (0.5, -2.0, 3.0, 1.0), 0.25, 0.3
    good = (True, True, False, False)
    of = (1 - sigmoid(beta * (r - z0)) if is_good else 1 - sigmoid(beta * (z0 - r))
          for r, is_good in zip(rewards, good, strict=True))  # fmt: skip
    losses = kto(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(good), torch.tensor(z0), TaskOptions(beta=beta)
    )
    assert losses.tolist() == pytest.approx(list(of), rel=1e-12)


def test_a_complement_is_exact_near_both_ends() -> None:
    logs = torch.tensor([-1e-5, -0.69, -0.7, -40.0], dtype=torch.float64)
    wanted = [math.log(-math.expm1(x)) for x in logs.tolist()]
    assert log_complement(logs).tolist() == pytest.approx(wanted, rel=1e-12)
