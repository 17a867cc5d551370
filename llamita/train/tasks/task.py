"""What a training task is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.data.documents import Document
from llamita.data.loader import Batch
from llamita.data.records import Record
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.protocol import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The settings of tasks.

    z_loss: of pretrain and sft, see `llamita.model.chunked_loss`.
    Of preferences: loss, one of `llamita.train.tasks.preference_losses`. beta: how strongly the model is held to the
    reference; the weight of orpo's odds ratio. label_smoothing: the share of pairs that may be the wrong way around.
    is_reference_free: compare with no reference model.
    Of grpo: reward, see `llamita.train.tasks.rewards`. group: answers to each prompt. max_tokens: of an answer. kl: the
    weight of the divergence from the base model. length: tokens of a row.
    """

    z_loss: float = 0.0
    loss: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    is_reference_free: bool = False
    reward: str = "exact"
    group: int = 8
    max_tokens: int = 32
    kl: float = 0.0
    length: int = 256


def learned_tokens(batch: Batch) -> int:
    """How many tokens of a batch are learned."""
    return batch.learned


def no_figures(model: LlamaForCausalLM, batch: Batch) -> Mapping[str, Tensor]:
    """No figures besides the loss."""
    return {}


Compute = Callable[
    [Callable[..., Tensor], Batch], Tensor
]  # what `compute(model, batch)` returns, on the model's device


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one kind of training is.

    documents: of records. loss: summed () over a batch, in fp32. count: what that sum is divided by, over the whole
    step, so that it does not matter how a step is cut into passes; unit: what it counts.
    figures: sums () of what is measured on held-out rows besides the loss, divided likewise; figure_names: theirs.
    prepare: completes the batch of a whole step before its first pass, given what runs a pass of the model, and the
    rows of a pass. needs_reference: the rows get the log-probabilities of the model at the start. is_reward: the model
    has a head of one number instead of the vocabulary. step_figures: what the last step has shown, by name. samples:
    the model writes in every step.
    """

    documents: Callable[[Sequence[Record], Tokenizer], list[Document]]
    loss: Callable[[LlamaForCausalLM, Batch], Tensor]
    count: Callable[[Batch], int] = learned_tokens
    unit: str = "token"
    figures: Callable[[LlamaForCausalLM, Batch], Mapping[str, Tensor]] = no_figures
    figure_names: tuple[str, ...] = ()
    prepare: Callable[[Compute, Batch, int], Batch] | None = None
    needs_reference: bool = False
    is_reward: bool = False
    step_figures: Callable[[], dict[str, float]] = dict
    samples: bool = False

    def measured(self, model: LlamaForCausalLM, batch: Batch) -> Tensor:
        """The summed loss and figures of a batch, in the order of their names: (1 + figures,)."""
        figures = self.figures(model, batch)
        return torch.stack([self.loss(model, batch), *(figures[name] for name in self.figure_names)])


MakeTask = Callable[[TaskOptions], Task]
