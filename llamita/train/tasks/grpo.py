"""GRPO: the model answers each prompt several times, and learns from a reward which of its answers were better.

Group relative policy optimization (arXiv:2402.03300), with the loss averaged over all tokens of a step
(arXiv:2503.14476), so that it does not matter how a step is cut into passes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llamita.adapters.lora import lora_layers, without_adapters
from llamita.data.documents import IGNORED, Document, encode_prompt
from llamita.data.loader import Batch, take
from llamita.data.packing import pack
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.rollouts import Rollout, RolloutWriter
from llamita.train.tasks.log_probs import as_sampled, log_probs
from llamita.train.tasks.rewards import Reward, check_fields, find_reward
from llamita.train.tasks.task import Compute, Task, TaskOptions
from llamita.train.tasks.texts import text_numbers

DIFFERENCE = "largest difference of log-probabilities"  # of the sampler and the trainer
CLIP = 0.2  # how far from 1 a ratio may go before it is clipped
HELD_OUT = "held-out reward"
TINY = 1e-6  # rewards of a group that differ by less do not say which answer was better


def grpo(options: TaskOptions) -> Task:
    """The task of a reward. Raises what `find_reward` raises."""
    steps = _Steps(options, *find_reward(options.reward))
    return Task(
        documents=steps.documents,
        loss=lambda model, batch: loss(model, batch, kl=options.kl),
        count=count,
        figures=steps.held_out,
        figure_names=(HELD_OUT,),
        prepare=steps.prepare,
        step_figures=lambda: dict(steps.figures),
        samples=True,
    )


def advantages(rewards: Tensor) -> Tensor:
    """How much better each answer was than its group's mean, in standard deviations: (prompts, answers) to the same.

    0 where all answers of a group have the same reward.
    """
    spread = rewards.std(1, correction=0, keepdim=True)
    return torch.where(spread > TINY, (rewards - rewards.mean(1, keepdim=True)) / spread.clamp(min=TINY), 0.0)


def token_losses(log_probs: Tensor, old: Tensor, advantage: Tensor, reference: Tensor | None, kl: float) -> Tensor:
    """The loss of each token (n,): -min(ratio A, clipped ratio A), + kl (e^d - d - 1) of d = reference - log_probs.

    old: log-probabilities of the model that sampled. advantage: A of the token's answer.
    """
    ratio = torch.exp(log_probs - old)
    found = -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    if reference is None:
        return found
    difference = reference - log_probs
    return found + kl * (torch.exp(difference) - difference - 1)


def loss(model: LlamaForCausalLM, batch: Batch, *, kl: float) -> Tensor:
    """The summed loss () of a batch of answers; 0 for prompts without answers."""
    is_learned = batch.targets != IGNORED
    if batch.old is None or batch.labels is None:
        return torch.zeros((), device=batch.inputs.device)
    reference = None if batch.reference is None else batch.reference[is_learned]
    found = log_probs(model, batch, as_sampled)[is_learned]
    return token_losses(found, batch.old[is_learned], batch.labels[is_learned], reference, kl).sum()


def count(batch: Batch) -> int:
    """The learned tokens of answers; of a batch of prompts, the prompts."""
    return batch.learned if batch.old is not None else len(batch)


@dataclass
class _Steps:
    """What a run of GRPO knows besides the model: its records, and what the last step has shown."""

    options: TaskOptions
    reward: Reward
    needs: str | None
    records: Sequence[Record] = ()
    writer: RolloutWriter | None = None
    figures: dict[str, float] = field(default_factory=dict)

    def documents(self, records: Sequence[Record], tokenizer: Tokenizer) -> list[Document]:
        """One document a prompt, which fills a row; its label is its record's number, from 1."""
        if self.options.max_tokens >= self.options.length:
            raise UsageError(
                f"an answer may have {self.options.max_tokens} tokens and a row {self.options.length}: raise --length"
            )
        self.records, self.writer = records, RolloutWriter(tokenizer, max_tokens=self.options.max_tokens)
        return [self._document(record, number, tokenizer) for number, record in enumerate(records, start=1)]

    def prepare(self, compute: Compute, batch: Batch, micro_rows: int) -> Batch:
        """The batch of answers to a batch of prompts, with their advantages and log-probabilities."""
        group, written = self.options.group, list[Rollout]()
        prompts = [prompt for prompt, _ in _prompts(batch) for _ in range(group)]
        records = [self.records[number] for _, number in _prompts(batch) for _ in range(group)]
        seeds = torch.randint(2**62, (len(prompts),), device="cpu").tolist()

        def write(model: LlamaForCausalLM, _: Batch) -> Tensor:
            assert self.writer is not None
            written.extend(self.writer(model, prompts, seeds))
            return torch.zeros((), device="cpu")

        compute(write, batch)
        rewards = torch.tensor(
            [float(self.reward(one.text, r.fields)) for one, r in zip(written, records, strict=True)],
            dtype=torch.float32, device="cpu",
        )  # fmt: skip
        answers = answer_batch(written, advantages(rewards.view(-1, group)).flatten(), self.options.length)
        return self._with_log_probs(compute, answers, micro_rows, rewards)

    def _with_log_probs(self, compute: Compute, answers: Batch, micro_rows: int, rewards: Tensor) -> Batch:
        """The answers with the log-probabilities of the model as it is, by the trainer's own pass, and the base's."""
        parts = answers.split(micro_rows)
        with torch.no_grad():
            old = torch.cat([compute(_current, part) for part in parts]).to(answers.inputs.device)
            base = torch.cat([compute(_of_base, part) for part in parts]) if self.options.kl else None
        assert answers.old is not None
        self.figures = {
            "reward": float(rewards.mean()),
            DIFFERENCE: float((old - answers.old).abs().max()),
        }
        reference = None if base is None else base.to(answers.inputs.device)
        return Batch(answers.inputs, answers.targets, answers.positions, answers.labels, reference, old)

    @torch.no_grad()
    def held_out(self, model: LlamaForCausalLM, batch: Batch) -> Mapping[str, Tensor]:
        """The summed reward of one answer to each prompt, by seeds that are always the same."""
        assert self.writer is not None
        found = _prompts(batch)
        written = self.writer(model, [prompt for prompt, _ in found], [number for _, number in found])
        pairs = zip(written, found, strict=True)
        rewards = [float(self.reward(one.text, self.records[number].fields)) for one, (_, number) in pairs]
        return {HELD_OUT: torch.tensor(sum(rewards), dtype=torch.float32, device="cpu")}

    def _document(self, record: Record, number: int, tokenizer: Tokenizer) -> Document:
        if "prompt" not in record.fields:
            raise UsageError(f"{record.where} has no prompt, which grpo needs: give the field prompt")
        if self.needs is not None and self.needs not in record.fields:
            raise UsageError(
                f"{record.where} has no {self.needs}, which the reward {self.options.reward} needs: add it, or give "
                "another --reward"
            )
        check_fields(self.options.reward, record.fields, record.where)
        length, ids = self.options.length, encode_prompt(record.fields["prompt"], tokenizer)
        if len(ids) + self.options.max_tokens > length:
            raise UsageError(
                f"{record.where} has {len(ids)} tokens and its answer up to {self.options.max_tokens}, a row {length}: "
                f"pass --length {len(ids) + self.options.max_tokens}"
            )
        inputs = torch.zeros(length, dtype=torch.int32, device="cpu")
        inputs[: len(ids)] = torch.tensor(ids, dtype=torch.int32, device="cpu")
        return Document(
            inputs, torch.full_like(inputs, IGNORED), False, record.where, starts=(0, len(ids)), label=float(number)
        )


def answer_batch(written: Sequence[Rollout], advantage: Tensor, length: int) -> Batch:
    """Answers in packed rows: labels are their advantages, old their log-probabilities as they were sampled."""
    kept = [number for number, one in enumerate(written) if one.answer]
    documents = []
    for place, number in enumerate(kept, start=1):
        one = written[number]
        ids = torch.tensor([*one.prompt, *one.answer], dtype=torch.int32, device="cpu")
        targets = ids[1:].clone()
        targets[: len(one.prompt) - 1] = IGNORED
        documents.append(Document(ids[:-1], targets, False, label=float(place)))
    rows = pack(documents, length)
    batch = take(rows, torch.arange(len(rows), device="cpu"))
    assert batch.labels is not None
    label, old = (torch.zeros(batch.targets.shape, dtype=torch.float32, device="cpu") for _ in range(2))
    for place, number in enumerate(kept, start=1):
        is_own = (batch.labels == place) & (batch.targets != IGNORED)
        label[is_own] = advantage[number].item()
        old[is_own] = torch.tensor(written[number].log_probs, dtype=torch.float32, device="cpu")
    return Batch(batch.inputs, batch.targets, batch.positions, label, None, old)


def _prompts(batch: Batch) -> list[tuple[list[int], int]]:
    """The prompts of a batch, and the numbers of their records."""
    assert batch.labels is not None
    is_prompt = text_numbers(batch.positions) == 0
    rows = zip(batch.inputs, is_prompt, batch.labels, strict=True)
    return [(inputs[own].tolist(), int(labels[0]) - 1) for inputs, own, labels in rows]


def _current(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    return log_probs(model, batch, as_sampled)


def _of_base(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    if not lora_layers(model):
        raise UsageError("kl compares with the base model, which an adapter keeps: take --method lora, or --kl 0")
    with without_adapters(model):
        return log_probs(model, batch, as_sampled)
