"""What generation returns beside the tokens: records by transformers' names, the scores of its choices, logprobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.model.outputs import ModelOutput


@dataclass(repr=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """sequences (B, T + new); the rest, where asked for, one a step.

    scores: logits as they were chosen from, (B, V) fp32; logits: as the model gave them. attentions, hidden_states:
    one a layer, (B, N, T, S) and (B, T, D). acceptance: how well guessing ahead went (`speculative.Acceptance`).
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None
    acceptance: Any = None


@dataclass(repr=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """sequences (B * returned, T + new) and their sequences_scores (B * returned,), the best of each prompt first.

    scores: log probabilities as they were chosen from, (B * beams, V) fp32, one a step; logits: as the model gave
    them. beam_indices: (B * returned, new), the row of `scores` that each token was chosen in, -1 behind the end.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None


class ScoreRecorder:
    """What is kept of every step for the output: `scores`, `logits`, or neither."""

    def __init__(self, *, scores: bool = False, logits: bool = False) -> None:
        self._scores: list[Tensor] | None = [] if scores else None
        self._logits: list[Tensor] | None = [] if logits else None

    def add(self, logits: Tensor, scores: Tensor) -> None:
        """Keep a step's logits as the model gave them and as they were chosen from, (B, V) each."""
        for kept, new in ((self._logits, logits), (self._scores, scores)):
            if kept is not None:
                kept.append(new.clone())

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._scores is not None or self._logits is not None

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """One (B, V) a step, or None where not asked for."""
        return None if self._scores is None else tuple(self._scores)

    @property
    def logits(self) -> tuple[Tensor, ...] | None:
        """One (B, V) a step, or None where not asked for."""
        return None if self._logits is None else tuple(self._logits)


class RaggedScoreRecorder:
    """The record of rows that grow unequally: logits and scores of each row's tokens, brought into step at the end."""

    def __init__(self, rows: int, record: ScoreRecorder) -> None:
        self._rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
        self._record = record

    def add(self, logits: Tensor, scores: Tensor, among: Tensor) -> None:
        """Keep logits and scores (B, V) of the next token of the rows `among` (B,)."""
        for row in among.nonzero()[:, 0].tolist():
            self._rows[row].append((logits[row], scores[row]))

    def close(self, lengths: Sequence[int]) -> None:
        """Hand the record a step (B, V) for each token, of rows that took so many; zeros behind a row's end."""
        blank = next((torch.zeros_like(steps[0][0]) for steps in self._rows if steps), None)
        for step in range(max(lengths, default=0)):
            assert blank is not None
            pairs = zip(self._rows, lengths, strict=True)
            taken = [steps[step] if step < length else (blank, blank) for steps, length in pairs]
            logits, scores = (torch.stack(column) for column in zip(*taken, strict=True))
            self._record.add(logits, scores)


def side_by_side(rows: Sequence[Sequence[int]], *, fill: int, device: torch.device | str = "cpu") -> Tensor:
    """Rows of token ids as one tensor (B, longest), `fill` behind the shorter ones."""
    longest = max(map(len, rows), default=0)
    padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), longest)


def compute_transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of every token that was written, (B, new): 0 behind the end of a beam.

    sequences: (B, T + new). scores: (rows, V) a step. beam_indices: (B, new), the row of each token; None where rows
    stayed in their places. normalize_logits: make log probabilities of the scores first.
    """
    if beam_indices is None:
        rows = torch.arange(scores[0].shape[0], device=sequences.device)
        beam_indices = rows[:, None].expand(-1, len(scores))
    ended = beam_indices < 0  # (B, new)
    longest = int((~ended).sum(-1).max())
    ended, rows = ended[:, :longest], beam_indices[:, :longest].clamp(min=0).long()
    written = sequences[:, sequences.shape[1] - longest :]
    columns = []
    for step in range(longest):
        table = scores[step].log_softmax(-1) if normalize_logits else scores[step]
        columns.append(table[rows[:, step], written[:, step]])
    return torch.stack(columns, dim=1).masked_fill(ended, 0.0)


class Logprobs(NamedTuple):
    """How likely tokens were, and what was likeliest in their places.

    chosen (..., ) the log probabilities of the tokens, ranks (...,) how many were at least as likely (1: the
    likeliest), top (..., n) the likeliest ids and top_logprobs (..., n) theirs; fp32.
    """

    chosen: Tensor
    ranks: Tensor
    top: Tensor
    top_logprobs: Tensor


def logprobs_of(logits: Tensor, tokens: Tensor, *, top: int = 0) -> Logprobs:
    """The log probabilities of tokens (...,) under logits (..., V), with the `top` likeliest beside them."""
    table = logits.float().log_softmax(-1)
    chosen = table.gather(-1, tokens[..., None])  # (..., 1)
    likeliest = table.topk(min(top, table.shape[-1]), dim=-1)
    return Logprobs(chosen[..., 0], (table > chosen).sum(-1) + 1, likeliest.indices, likeliest.values)


@torch.no_grad()
def logprobs_through(
    hidden_states: Tensor, head: nn.Module, tokens: Tensor, *, top: int = 0, chunk: int = 128
) -> Logprobs:
    """The log probabilities of tokens (B, T) after hidden states (B, T, D), with at most `chunk` rows of logits alive.

    The hidden state of a place tells of the token after it: pass `hidden_states[:, :-1]` and `input_ids[:, 1:]`.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}: it must be at least 1 token")
    pairs = zip(hidden_states.flatten(0, -2).split(chunk), tokens.flatten().split(chunk), strict=True)
    parts = [logprobs_of(head(states), chosen, top=top) for states, chosen in pairs]
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return Logprobs(*(column.unflatten(0, tokens.shape) for column in joined))


@torch.no_grad()
def prompt_logprobs(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    top: int = 0,
    chunk: int = 128,
) -> Logprobs:
    """How likely a text (B, T) was, token by token from its second: (B, T - 1); what padding gets means nothing."""
    hidden_states = model.model(
        input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True
    ).last_hidden_state
    return logprobs_through(hidden_states[:, :-1], model.lm_head, input_ids[:, 1:], top=top, chunk=chunk)
