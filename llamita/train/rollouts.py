"""Answers that the model in training writes itself, many at once, by our engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.generation.text_options import TextModel, TextOptions
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.protocol import Tokenizer

AT_ONCE = 32  # answers
DRAWN: TextOptions = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rollout:
    """An answer: the tokens of its prompt and its own, their log-probabilities as sampled, its text."""

    prompt: list[int]
    answer: list[int]
    log_probs: list[float]
    text: str


class RolloutWriter:
    """Writes answers with the model as it is, drawn from its own distribution: temperature 1, no filters.

    max_tokens: the most tokens of an answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._options: TextOptions = {**DRAWN, "max_tokens": max_tokens}
        self._texts: TextModel | None = None  # its tables take a while

    @torch.no_grad()
    def __call__(self, model: LlamaForCausalLM, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Rollout]:
        """An answer to each prompt, each by its own seed; without dropout."""
        if self._texts is None or self._texts.model is not model:
            self._texts = TextModel(model, self._tokenizer)
        was_training = model.training
        limits = EngineLimits(max_num_seqs=min(len(prompts), AT_ONCE), max_num_queued=len(prompts))
        model.eval()
        try:
            with Engine(self._texts, limits) as engine:
                handles = [
                    engine.submit(prompt, **{**self._options, "seed": seed})
                    for prompt, seed in zip(prompts, seeds, strict=True)
                ]
                written = [handle.result() for handle in handles]
        finally:
            model.train(was_training)
        return [
            Rollout(prompt, list(one.token_ids), [entry.logprob for entry in one.logprobs or ()], one.text)
            for prompt, one in zip(prompts, written, strict=True)
        ]
