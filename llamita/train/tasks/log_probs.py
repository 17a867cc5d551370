"""The log-probabilities of a batch's targets."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.data.documents import IGNORED
from llamita.data.loader import Batch
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.likelihoods import log_softmax

Choose = Callable[[Tensor, Tensor], Tensor]  # logits (n, V), targets (n,) -> log-probabilities (n,)


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    """By torch, in fp32, or fp64 for logits in fp64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -F.cross_entropy(logits, targets, reduction="none")


def as_sampled(logits: Tensor, targets: Tensor) -> Tensor:
    """By the sampler's own function, with the same bits as the log-probabilities that generation reports."""
    return _Sampled.apply(logits.float(), targets)  # type: ignore[return-value]


def log_probs(model: LlamaForCausalLM, batch: Batch, choose: Choose = plain) -> Tensor:
    """The log-probability of each target, 0 where nothing is learned: (B, T) in fp32, or fp64 for such a model."""
    hidden_states = model.model(
        batch.inputs, position_ids=batch.positions, use_cache=False, return_dict=True
    ).last_hidden_state
    is_learned = batch.targets != IGNORED
    found = choose(model.lm_head(hidden_states[is_learned]), batch.targets[is_learned])
    return found.new_zeros(batch.targets.shape).masked_scatter(is_learned, found)


class _Sampled(torch.autograd.Function):
    """The sampler's log-softmax, which has no gradient of its own; the gradient is that of torch's."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        table = log_softmax(logits)
        ctx.save_for_backward(table, targets)
        return table.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        table, targets = ctx.saved_tensors
        gradient = -table.exp()
        gradient.scatter_add_(1, targets[:, None], torch.ones_like(gradient[:, :1]))
        return gradient * grads[0][:, None], None
