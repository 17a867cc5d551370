"""Losses of preference pairs, as formulas of log-probabilities; all are of one pair each, and are minimized."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.train.tasks.task import TaskOptions


@dataclass(frozen=True, slots=True)
class Pairs:
    """Log-probabilities (n,) of the chosen and the rejected answers, summed over tokens, and how many those are.

    reference_chosen, reference_rejected: those of the reference model, 0 without one.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def margin(self) -> Tensor:
        """How much more the model prefers the chosen answer than the reference does, in nats: (n,)."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)


def dpo(pairs: Pairs, options: TaskOptions) -> Tensor:
    """-log sigmoid(beta * margin) (arXiv:2305.18290); with label smoothing, cDPO's mean over both orders."""
    scaled, smoothing = options.beta * pairs.margin, options.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(scaled) - smoothing * F.logsigmoid(-scaled)


def ipo(pairs: Pairs, options: TaskOptions) -> Tensor:
    """The square of margin - 1 / (2 beta) (arXiv:2310.12036)."""
    return (pairs.margin - 1 / (2 * options.beta)) ** 2


def orpo(pairs: Pairs, options: TaskOptions) -> Tensor:
    """The chosen answer's loss per token - beta * log sigmoid(log odds ratio) (arXiv:2403.07691)."""
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    ratio = (chosen - log_complement(chosen)) - (rejected - log_complement(rejected))
    return -chosen - options.beta * F.logsigmoid(ratio)


def log_complement(log_probability: Tensor) -> Tensor:
    """log(1 - p) of log p, with no loss of digits near p = 0 or p = 1."""
    clipped = log_probability.clamp(max=-1e-6)  # p = 1 would have infinite odds
    return torch.where(clipped > -0.693, torch.log(-torch.expm1(clipped)), torch.log1p(-torch.exp(clipped)))


@dataclass(frozen=True, slots=True)
class PairLoss:
    """The loss (n,) of pairs, and whether it compares with a reference model."""

    of: Callable[[Pairs, TaskOptions], Tensor]
    needs_reference: bool = True


PAIR_LOSSES: Mapping[str, PairLoss] = {
    "dpo": PairLoss(dpo),
    "ipo": PairLoss(ipo),
    "orpo": PairLoss(orpo, needs_reference=False),
}


def kto(reward: Tensor, is_desirable: Tensor, baseline: Tensor, options: TaskOptions) -> Tensor:
    """1 - sigmoid(beta * (reward - baseline)) of desirable answers, with the signs turned of others (arXiv:2402.01306).

    reward (n,): how much likelier the answer is than by the reference, in nats. baseline (n,): what it is compared
    with, at least 0.
    """
    sign = torch.where(is_desirable, 1.0, -1.0).to(reward.dtype)
    return 1 - torch.sigmoid(options.beta * sign * (reward - baseline))
