"""Log-probabilities of written tokens, of prompt tokens, and of the most probable alternatives."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.protocol import LanguageModel
from llamita.sampling.likelihoods import log_softmax
from llamita.tokenizer.token_bytes import TokenTexts


class Logprobs(NamedTuple):
    """Log-probabilities of tokens, and of the most probable alternatives.

    chosen: (...,) of the tokens themselves. ranks: (...,) 1 for the most probable token, 2 for the next.
    top, top_logprobs: (..., n) ids and log-probabilities of the most probable tokens. All in fp32.
    """

    chosen: Tensor
    ranks: Tensor
    top: Tensor
    top_logprobs: Tensor


class TokenLogprob(NamedTuple):
    """A token, its text, its log-probability, and the most probable alternatives."""

    token_id: int
    text: str
    logprob: float
    top: Sequence["TokenLogprob"] = ()

    @property
    def probability(self) -> float:
        """From 0 to 1."""
        return math.exp(self.logprob)


def token_logprobs(texts: TokenTexts, tokens: Tensor, logprobs: Logprobs) -> list[TokenLogprob]:
    """Tokens (T,) with their log-probabilities (T,) and the most probable alternatives (T, n)."""
    tops = zip(logprobs.top.tolist(), logprobs.top_logprobs.tolist(), strict=True)
    likeliest = [tuple(TokenLogprob(i, texts.of(i), value) for i, value in zip(*top, strict=True)) for top in tops]
    rows = zip(tokens.tolist(), logprobs.chosen.tolist(), likeliest, strict=True)
    return [TokenLogprob(token_id, texts.of(token_id), logprob, top) for token_id, logprob, top in rows]


class LogprobRecorder:
    """Records the log-probability of each token under the model's own logits, before temperature and filters.

    rows: the entries of each row so far. top: how many of the most probable alternatives to record.
    """

    def __init__(self, texts: TokenTexts, rows: int, *, top: int) -> None:
        self.rows: list[list[TokenLogprob]] = [[] for _ in range(rows)]
        self._texts = texts
        self._top = top

    def __call__(self, logits: Tensor, scores: Tensor, tokens: Tensor) -> None:
        """Record a step: the model's logits (B, V), and the tokens (B,) that were chosen."""
        step = token_logprobs(self._texts, tokens, logprobs_of(logits, tokens, top=self._top))
        for row, entry in zip(self.rows, step, strict=True):
            row.append(entry)


def logprobs_of(logits: Tensor, tokens: Tensor, *, top: int = 0) -> Logprobs:
    """The log-probabilities of tokens (...,) under logits (..., V), and the `top` most probable alternatives."""
    table = log_softmax(logits.float().flatten(0, -2)).view(logits.shape)
    chosen = table.gather(-1, tokens[..., None])  # (..., 1)
    likeliest = table.topk(min(top, table.shape[-1]), dim=-1)
    return Logprobs(chosen[..., 0], (table > chosen).sum(-1) + 1, likeliest.indices, likeliest.values)


@torch.no_grad()
def logprobs_through(
    hidden_states: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, *, top: int = 0, chunk: int = 128
) -> Logprobs:
    """The log-probabilities of tokens (B, T) after hidden states (B, T, D).

    At most `chunk` rows of logits are in memory at a time. A hidden state predicts the next token: pass
    `hidden_states[:, :-1]` and `input_ids[:, 1:]`. Raises UsageError for a chunk below 1.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}: it must be at least 1 token")
    pairs = zip(hidden_states.flatten(0, -2).split(chunk), tokens.flatten().split(chunk), strict=True)
    parts = [logprobs_of(head(states), chosen, top=top) for states, chosen in pairs]
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return Logprobs(*(column.unflatten(0, tokens.shape) for column in joined))


@torch.no_grad()
def prompt_logprobs(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    top: int = 0,
    chunk: int = 128,
) -> Logprobs:
    """The log-probabilities (B, T - 1) of a text's tokens from the second on; those of padding mean nothing."""
    hidden_states = model.last_hidden_state(input_ids, attention_mask)
    return logprobs_through(hidden_states[:, :-1], model.head, input_ids[:, 1:], top=top, chunk=chunk)


class Prompted(Protocol):
    """A sequence as it is used here: a prompt, and a field for the log-probabilities of its tokens."""

    prompt_token_ids: list[int]
    prompt_logprobs: Sequence[TokenLogprob] | None


def note_prompt_logprobs(model: LanguageModel, sequences: Iterable[Prompted], texts: TokenTexts, *, top: int) -> None:
    """Record the log-probabilities of each prompt's tokens from the second on, and the `top` best alternatives."""
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_token_ids], device=model.device)
        found = prompt_logprobs(model, ids, top=top)
        logprobs = Logprobs(*(column[0] for column in found))
        sequence.prompt_logprobs = token_logprobs(texts, ids[0, 1:], logprobs)
