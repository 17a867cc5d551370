"""Losses of the language model and of the heads."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def shift(labels: Tensor) -> Tensor:
    """What each token should say next: labels (B, T) one to the left, nothing after the last."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:].contiguous()


def targets(labels: Tensor | None, shifted: Mapping[str, Any]) -> Tensor | None:
    """What the tokens should say next (B, T): labels moved by one, or the `shift_labels` in `shifted` as they are."""
    if unknown := next(iter(shifted.keys() - {"shift_labels"}), None):
        raise TypeError(f"forward() got an unexpected keyword argument {unknown!r}")
    moved = shifted.get("shift_labels")
    return shift(labels) if moved is None and labels is not None else moved


def cross_entropy(
    logits: Tensor, targets: Tensor, num_items: Tensor | int | None = None, ignored: int = IGNORED
) -> Tensor:
    """Cross-entropy in fp32 of logits (..., V) and targets (...): the mean, or the sum over `num_items`.

    Under gradient accumulation the mean of micro-batch means is not the mean; there `num_items` is the number of
    targets of the whole batch.
    """
    logits, targets = logits.view(-1, logits.shape[-1]), targets.reshape(-1).to(logits.device)
    if num_items is None:
        return F.cross_entropy(logits, targets, ignore_index=ignored)
    if isinstance(num_items, Tensor):
        num_items = num_items.to(logits.device)
    return F.cross_entropy(logits, targets, ignore_index=ignored, reduction="sum") / num_items


def classification(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """The loss of pooled logits (B, labels), in their dtype.

    problem_type None is inferred: one label is a regression, whole numbers (B,) are classes, others (B, labels) are
    several yes-or-no questions at once.
    """
    labels = labels.to(logits.device)
    count = logits.shape[-1]
    return CLASSIFICATION[problem_type or _inferred_problem(count, labels)](logits, labels)


def _inferred_problem(count: int, labels: Tensor) -> str:
    if count == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (torch.long, torch.int) else "multi_label_classification"


def _regression(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.squeeze(), labels.squeeze()) if logits.shape[-1] == 1 else F.mse_loss(logits, labels)


CLASSIFICATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "regression": _regression,
    "single_label_classification": cross_entropy,
    "multi_label_classification": F.binary_cross_entropy_with_logits,
}


def span(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The loss of an answer's first and last token: logits (B, T), positions (B,) or (B, 1); outside of T ignored."""
    outside = start_logits.shape[1]
    pairs = ((start_logits, start), (end_logits, end))
    first, last = (cross_entropy(logits, at.clamp(0, outside), ignored=outside) for logits, at in pairs)
    return (first + last) / 2


def preference(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), the mean over pairs of rewards, in fp32 (Bradley & Terry 1952)."""
    return -F.logsigmoid(chosen.float() - rejected.float() - margin).mean()
