"""Beam search and beam sampling: several continuations of each prompt side by side, the best of them kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.sequence import first_match
from llamita.sampling.finite import NEVER, multinomial
from llamita.sampling.history import History
from llamita.tokenizer.protocol import Tokenizer

FIRST_CAPACITY = 256  # tokens that fit the hypotheses at first


@dataclass
class Hypotheses:
    """Continuations of each prompt, n side by side.

    tokens: (B, n, limit), filled after the end. origins: (B, n, limit), the row of the batch of B * beams in which
    each token was chosen, -1 after the end. scores: (B, n) fp32. ended: (B, n) bool.
    """

    tokens: Tensor
    origins: Tensor
    scores: Tensor
    ended: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int], *, fill: int, device: torch.device) -> "Hypotheses":
        """Empty hypotheses of shape (B, n, limit), with a score below any other."""
        tokens = torch.full(shape, fill, device=device)
        scores = torch.full(shape[:2], NEVER, dtype=torch.float32, device=device)
        origins = torch.full_like(tokens, -1, dtype=torch.int32)  # transformers' dtype
        return cls(tokens, origins, scores, torch.zeros_like(scores, dtype=torch.bool))

    def longer(self, capacity: int, *, fill: int) -> "Hypotheses":
        """The same hypotheses in tensors of this many tokens."""
        more = (0, capacity - self.tokens.shape[2])
        tokens, origins = F.pad(self.tokens, more, value=fill), F.pad(self.origins, more, value=-1)
        return Hypotheses(tokens, origins, self.scores, self.ended)

    def take(self, index: Tensor) -> "Hypotheses":
        """The hypotheses numbered by index (B, m), for each prompt, in this order."""
        flat = (torch.take_along_dim(x, index, dim=1) for x in (self.scores, self.ended))
        deep = (torch.take_along_dim(x, index[..., None], dim=1) for x in (self.tokens, self.origins))
        return Hypotheses(*deep, *flat)

    def joined(self, other: "Hypotheses") -> "Hypotheses":
        """These and the other hypotheses, for each prompt."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Hypotheses(*(torch.cat(pair, dim=1) for pair in pairs))

    def lengths(self) -> Tensor:
        """How many tokens each has: (B, n)."""
        return (self.origins >= 0).sum(-1)


class BeamSearch:
    """The running and the finished hypotheses of B prompts: transformers' search, step for step.

    beams: how many hypotheses run side by side. limit: the most tokens to write.
    length_penalty: scores are divided by length ** this: above 0 favours long ones.
    early_stopping: True ends a prompt as soon as `beams` of its hypotheses have finished; False when the best running
    one, at its present length, is no better than the worst finished; "never" when it cannot become better.
    stops: which rows of token ids (R, written) are over, besides those with an end token.
    do_sample: draw the candidates, from `generators` (one a prompt) or torch's global one, rather than take the best.
    fill: the token after the end (see `filler`). Raises UsageError for less than one beam or token.
    """

    def __init__(
        self,
        prompts: History,
        *,
        beams: int,
        limit: int,
        eos_token_ids: Sequence[int] = (),
        stops: Callable[[Tensor], Tensor] | None = None,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        do_sample: bool = False,
        generators: Sequence[torch.Generator] | None = None,
        fill: int = -1,
    ) -> None:
        if beams < 1 or limit < 1:
            raise UsageError(f"beams is {beams} and limit {limit}: give 1 or more")
        if early_stopping not in (True, False, "never"):
            raise UsageError(f'early_stopping is {early_stopping!r}: give True, False or "never"')
        batch, device = len(prompts.input_ids), prompts.input_ids.device
        self.batch = batch
        self.beams = beams
        self.limit = limit
        self.eos = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)
        self.stops = stops
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.do_sample = do_sample
        self.generators = generators
        self.written = 0
        self.is_over = False
        self._fill = fill
        self.running = Hypotheses.empty((batch, beams, min(limit, FIRST_CAPACITY)), fill=fill, device=device)
        self.finished = Hypotheses.empty((batch, beams, min(limit, FIRST_CAPACITY)), fill=fill, device=device)
        self.running.scores[:, 0] = 0.0  # the others begin as copies of the first: they must not be chosen
        self._prompts = prompts.select([row for row in range(batch) for _ in range(beams)])
        self._open = torch.ones(batch, 1, dtype=torch.bool, device=device)  # may still improve
        self._settled = [0] * batch

    @property
    def history(self) -> History:
        """The texts of the running hypotheses, B * beams of them."""
        written = self.running.tokens[..., : self.written].flatten(0, 1)
        return replace(self._prompts, input_ids=torch.cat((self._prompts.input_ids, written), dim=1))

    @property
    def last(self) -> Tensor:
        """The token that each running hypothesis wrote last: (B * beams,)."""
        return self.running.tokens[..., self.written - 1].flatten()

    def advance(self, log_probabilities: Tensor) -> Tensor:
        """Extend the beams by log-probabilities (B * beams, V); returns the row (B * beams,) each one continues."""
        if self.written == self.running.tokens.shape[2]:
            capacity = min(2 * self.written, self.limit)
            self.running, self.finished = (x.longer(capacity, fill=self._fill) for x in (self.running, self.finished))
        candidates, hits = self._candidates(log_probabilities.unflatten(0, (-1, self.beams)))
        self._finish(candidates, hits)
        candidates.scores = candidates.scores + hits.float() * NEVER
        self.running = candidates.take(candidates.scores.topk(self.beams).indices)
        self.written += 1
        self._close(hits)
        return self.running.origins[..., self.written - 1].flatten()

    def _candidates(self, log_probabilities: Tensor) -> tuple[Hypotheses, Tensor]:
        """The best, or drawn, continuations of all beams (B, K), and which of them are over (B, K).

        K is large enough that `beams` of them remain if every end token is among the best.
        """
        batch, beams, vocabulary = log_probabilities.shape
        totals = (log_probabilities + self.running.scores[..., None]).flatten(1)  # (B, beams * V)
        count = min(max(2, 1 + len(self.eos)) * beams, totals.shape[1])
        index = self._drawn(totals, count) if self.do_sample else totals.topk(count).indices
        candidates = self.running.take(index // vocabulary)
        first = torch.arange(batch, device=index.device)[:, None] * beams
        candidates.tokens[..., self.written] = index % vocabulary
        candidates.origins[..., self.written] = (index // vocabulary + first).int()
        candidates.scores = totals.gather(1, index)
        return candidates, self._ends(candidates)

    def _drawn(self, totals: Tensor, count: int) -> Tensor:
        probabilities = totals.softmax(-1)
        if self.generators is None:
            return multinomial(probabilities, count)
        rows = zip(probabilities, self.generators, strict=True)
        return torch.stack([multinomial(row, count, generator=generator) for row, generator in rows])

    def _ends(self, candidates: Hypotheses) -> Tensor:
        tokens = candidates.tokens[..., : self.written + 1]
        if self.written + 1 >= self.limit:
            return torch.ones_like(candidates.ended)
        over = torch.isin(tokens[..., -1], self.eos)
        return over if self.stops is None else over | self.stops(tokens.flatten(0, 1)).view_as(over)

    def _finish(self, candidates: Hypotheses, hits: Tensor) -> None:
        """Move candidates that are over, and among the best, to the finished hypotheses."""
        ended = hits.clone()
        ended[:, self.beams :] = False
        scores = candidates.scores / _divisor(self.written + 1, self.length_penalty)
        scores += (self.finished.ended.all(-1, keepdim=True) & (self.early_stopping is True)).float() * NEVER
        scores += (~self._open).float() * NEVER
        scores += (~ended) * NEVER
        merged = self.finished.joined(Hypotheses(candidates.tokens, candidates.origins, scores, ended))
        self.finished = merged.take(merged.scores.topk(self.beams).indices)

    def _close(self, hits: Tensor) -> None:
        """Update which prompts can still improve, and whether the search is over."""
        is_hopeful = self.early_stopping == "never" and self.length_penalty > 0.0
        length = self.limit if is_hopeful else self.written
        best = self.running.scores[:, :1] / _divisor(length, self.length_penalty)
        finished = self.finished
        worst = torch.where(finished.ended, finished.scores.min(dim=1, keepdim=True).values, NEVER)
        self._open = self._open & (best > worst).any(-1, keepdim=True)
        are_full = self.early_stopping is True and bool(finished.ended.all())
        self.is_over = not bool(self._open.any()) or are_full or bool(hits.all())

    def best(self, returned: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Of each prompt the `returned` best: token ids and origins (B * returned, new), scores (B * returned,).

        Raises UsageError for more than there are beams.
        """
        if not 1 <= returned <= self.beams:
            raise UsageError(f"num_return_sequences is {returned}, of {self.beams} beams: give at most num_beams")
        best = self.finished.take(torch.arange(returned, device=self.eos.device).expand(self.batch, -1))
        longest = int(best.lengths().max())
        tokens, origins = (x[..., :longest].flatten(0, 1) for x in (best.tokens, best.origins))
        return tokens, origins, best.scores.flatten()

    @property
    def closed(self) -> Tensor:
        """Which prompts cannot improve any more: bool (B, 1)."""
        are_full = self.finished.ended.all(-1, keepdim=True) & (self.early_stopping is True)
        return ~self._open | are_full | self.is_over

    def settled(self) -> list[list[int]]:
        """The tokens of each prompt that have become final since the last call.

        A token is final when all hypotheses that may still win agree on it; at the end, all of the best are.
        """
        ended, is_closed = self.finished.ended, self.closed
        may_win = torch.cat((ended, torch.ones_like(ended)), dim=1)
        is_best = torch.arange(2 * self.beams, device=ended.device) == 0
        may_win = torch.where(is_closed, is_best, may_win)  # (B, 2 * beams)
        every = self.finished.joined(self.running)
        return [self._newly(row, every, may_win[row]) for row in range(self.batch)]

    def _newly(self, row: int, every: Hypotheses, may_win: Tensor) -> list[int]:
        start = self._settled[row]
        length = int(every.lengths()[row][may_win].min())
        tokens = every.tokens[row][may_win][:, start:length]  # (hypotheses, unsettled)
        agreed = int((tokens == tokens[:1]).all(0).long().cumprod(0).sum())
        self._settled[row] += agreed
        return tokens[0, :agreed].tolist()


def _divisor(length: int, penalty: float) -> float:
    """length ** penalty, as far as fp32 holds it."""
    number = torch.finfo(torch.float32)
    try:
        return min(max(float(length) ** penalty, number.tiny), number.max)
    except OverflowError:
        return number.max


def filler(pad_token_id: int | None, eos_token_ids: Sequence[int]) -> int:
    """The token after the end of a beam, as in transformers, where a padding token of 0 counts as none."""
    return (pad_token_id or eos_token_ids[0]) if eos_token_ids else -1


def stops_at(
    strings: Sequence[str], tokenizer: Tokenizer, *, again: Sequence[Sequence[int]] = ()
) -> Callable[[Tensor], Tensor]:
    """Which rows of token ids (R, written) contain one of these strings, however tokens cut it: bool (R,).

    again: ids of each prompt that are written a second time; their text is not searched.
    """
    skipped = [len(tokenizer.decode(ids)) for ids in again] or [0]

    def over(tokens: Tensor) -> Tensor:
        share = len(tokens) // len(skipped)
        spelled = (tokenizer.decode(row, skip_special_tokens=False) for row in tokens.tolist())
        texts = (text[skipped[i // share] :] for i, text in enumerate(spelled))
        return torch.tensor([first_match(text, strings) is not None for text in texts], device=tokens.device)

    return over
