"""Learning from preferences without a reward model: dpo, ipo, orpo and kto."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from llamita.data.loader import Batch
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.train.tasks.log_probs import log_probs
from llamita.train.tasks.preference_losses import PAIR_LOSSES, PairLoss, Pairs, kto
from llamita.train.tasks.preferences import pair_documents, rated_documents
from llamita.train.tasks.task import Compute, Task, TaskOptions
from llamita.train.tasks.texts import learned_counts, pair_count, pairs, sums

KTO = "kto"
FIGURES = ("accuracy", "margin")
LOSSES = (*PAIR_LOSSES, KTO)


def dpo(options: TaskOptions) -> Task:
    """The task of a loss. Raises UsageError for a loss that cannot do without a reference model."""
    if options.loss == KTO:
        if options.is_reference_free:
            raise UsageError("kto compares with a reference model: leave --reference-free out, or take dpo or ipo")
        return _of_ratings(options)
    return _of_pairs(PAIR_LOSSES[options.loss], options)


def _of_pairs(kind: PairLoss, options: TaskOptions) -> Task:
    def loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        return kind.of(read_pairs(model, batch), options).sum()

    def figures(model: LlamaForCausalLM, batch: Batch) -> Mapping[str, Tensor]:
        found = read_pairs(model, batch)
        return {"accuracy": (found.chosen > found.rejected).sum(), "margin": found.margin.sum()}

    return Task(
        documents=pair_documents,
        loss=loss,
        count=pair_count,
        unit="pair",
        figures=figures,
        figure_names=FIGURES,
        needs_reference=kind.needs_reference and not options.is_reference_free,
    )


def read_pairs(model: LlamaForCausalLM, batch: Batch) -> Pairs:
    """The log-probabilities of a batch's pairs."""
    policy = sums(log_probs(model, batch), batch)
    reference = torch.zeros_like(policy) if batch.reference is None else sums(batch.reference, batch).to(policy.dtype)
    return Pairs(*pairs(policy, batch), *pairs(reference, batch), *pairs(learned_counts(batch), batch))


def _of_ratings(options: TaskOptions) -> Task:
    def loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
        rewards, others = log_ratios(model, batch)
        baseline = others.detach().mean().clamp(min=0) if batch.baseline is None else batch.baseline.flatten()[0]
        return kto(rewards, are_good(batch), baseline, options).sum()

    def figures(model: LlamaForCausalLM, batch: Batch) -> Mapping[str, Tensor]:
        rewards, _ = log_ratios(model, batch)
        good = are_good(batch)
        return {"accuracy": ((rewards > 0) == good).sum(), "margin": torch.where(good, rewards, -rewards).sum()}

    return Task(
        documents=rated_documents,
        loss=loss,
        count=pair_count,
        unit="answer",
        figures=figures,
        figure_names=FIGURES,
        prepare=with_baseline,
        needs_reference=True,
    )


def are_good(batch: Batch) -> Tensor:
    """Which answers are labelled as good: bool (answers,)."""
    assert batch.labels is not None
    return pairs(sums(batch.labels, batch), batch)[0] > 0


def log_ratios(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """How much likelier answers are than by the reference model, and those of other prompts: both (answers,)."""
    policy = log_probs(model, batch)
    reference = torch.zeros_like(policy) if batch.reference is None else batch.reference.to(policy.dtype)
    return pairs(sums(policy - reference, batch), batch)


@torch.no_grad()
def with_baseline(compute: Compute, batch: Batch, micro_rows: int) -> Batch:
    """The batch with KTO's baseline: the mean log-ratio of the answers of other prompts in the whole step, at least 0.

    It is computed before the step's first pass, so that it does not depend on how the step is cut into passes.
    """
    parts = [compute(lambda model, part: log_ratios(model, part)[1], part) for part in batch.split(micro_rows)]
    baseline = torch.cat(parts).mean().clamp(min=0).to(batch.inputs.device)
    return replace(batch, baseline=baseline.expand(len(batch.inputs), 1))
