"""Speculative decoding that repeats transformers' random numbers, for one sampled text without a `seed`.

The same torch.manual_seed gives the same text as transformers' assisted generation (5.23). Its random numbers depend
on every draft, accepted or not. So the proposers here make exactly transformers' drafts, even those that a better
proposer would leave out.
"""

from collections.abc import Collection, Iterator
from typing import Protocol

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.generation.outputs import RaggedScoreRecorder
from llamita.generation.protocol import LanguageModel
from llamita.generation.run import Acceptance
from llamita.generation.runner import read_ragged
from llamita.generation.sequence import SequenceBatch
from llamita.generation.speculative.proposers import DraftModelProposer, Drafts, PromptLookupProposer, occurrences
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import (
    append_accepted,
    check,
    has_kernels,
    residual,
    score_drafts,
)
from llamita.sampling.finite import multinomial
from llamita.sampling.history import History, LogitsProcessor
from llamita.sampling.sampler import LogitsProcessorList

REREAD = 2  # tokens that transformers' draft model reads again at the start of a round, though they are in its cache


class HFProposer(Protocol):
    """Proposes drafts for one text; the counterpart of `proposers.Proposer`."""

    @property
    def vocab_size(self) -> int | None:
        """The size of its vocabulary; None if drafts come from the text."""
        ...

    @property
    def caches(self) -> list[DynamicCache]:
        """Its own caches of the text."""
        ...

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """Propose drafts; at most `most` of them can be accepted."""
        ...


class HFDraftProposer:
    """A draft model, or the model's first layers, samples a chain of drafts with the target's settings.

    The chain ends after an end token, and after a draft of lower probability than `proposer.confidence`.
    padding: the padding token. Where the prompt has no padding, transformers hides written tokens of this id from the
    draft model, but not from the target; so do we. None hides none.
    """

    def __init__(
        self,
        proposer: DraftModelProposer,
        *,
        process: LogitsProcessor | None,
        ends: Collection[int],
        padding: int | None,
    ) -> None:
        self._proposer = proposer
        self._process = process
        self._ends = frozenset(ends)
        self._padding = None if padding in self._ends else padding
        # Not the target's cache, even for an early exit: with hidden tokens the keys differ from the target's.
        self._cache = _new_cache(proposer.model)
        self.vocab_size = proposer.vocab_size
        self.caches: list[DynamicCache] = [self._cache]

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """A chain of drawn drafts, with the distributions they were drawn from."""
        self._cache.crop(min(self._cache.length, max(text.width - REREAD, 0)))
        new, shown, history = text.tokens[:, self._cache.length :], self._shown(text), text.history()
        drawn: list[Tensor] = []
        drawn_from: list[Tensor] = []
        for _ in range(min(self._proposer.length, most)):
            scores = self._read(new, shown, text.real)
            scores = scores if self._process is None else self._process(scores, history)
            drawn_from.append(scores.softmax(-1))
            new = multinomial(drawn_from[-1])  # (1, 1)
            drawn.append(new)
            if self._is_last(int(new), drawn_from[-1]):
                break
            shown, history = torch.cat((shown, torch.ones_like(shown[:, :1])), dim=1), history.append(new[:, 0])
        return _chain(drawn, text, drawn_from)

    def _shown(self, text: RaggedBatch) -> Tensor:
        """Which tokens of the text the draft model sees: (1, S) bool."""
        return text.tokens != self._padding if self._padding is not None and bool(text.real.all()) else text.real

    def _read(self, new: Tensor, shown: Tensor, real: Tensor) -> Tensor:
        """Logits (1, V) after new tokens; their positions count the hidden tokens before them."""
        start = self._cache.length
        counted = torch.arange(start, start + new.shape[1], device=new.device)[None]
        positions = None if torch.equal(shown[:, : real.shape[1]], real) else counted
        return read_ragged(self._proposer.model, new, shown, self._cache, positions=positions)[:, 0].float()

    def _is_last(self, token: int, probabilities: Tensor) -> bool:
        return token in self._ends or float(probabilities[0, token]) < self._proposer.confidence


class HFLookupProposer:
    """Prompt lookup: the drafts are the tokens after the first earlier occurrence of the text's last tokens.

    If the last n tokens do not occur earlier, it looks for the last n - 1, and so on. The drafts end before a token
    that the logits processors forbid, and before an end token. There may be more drafts than tokens left to write, as
    in transformers. vocabulary: the model's vocabulary size.
    """

    def __init__(
        self, proposer: PromptLookupProposer, *, process: LogitsProcessor | None, ends: Collection[int], vocabulary: int
    ) -> None:
        self._proposer = proposer
        self._process, self._vocabulary = process, vocabulary
        self._ends = frozenset(ends)
        self.vocab_size, self.caches = proposer.vocab_size, proposer.caches
        # Filters that do not read the text always forbid the same tokens: their result is computed once, by device.
        is_fixed = isinstance(process, LogitsProcessorList) and not process.reads_text
        self._fixed: dict[torch.device, Tensor] | None = {} if is_fixed else None

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """The first continuation whose first token is allowed, up to an end token."""
        if most > 0:
            history = text.history()
            for follows in continuations(text.row(0), self._proposer.length, ngram=self._proposer.ngram):
                if len(drafts := self._allowed(follows, history)):
                    return _chain(self._before_end(drafts), text)
        return _chain([], text)

    def _before_end(self, drafts: Tensor) -> list[Tensor]:
        ids = drafts.tolist()
        end = next((index for index, token in enumerate(ids) if token in self._ends), len(ids))
        return [token.view(1, 1) for token in drafts[:end]]

    def _allowed(self, drafts: Tensor, history: History) -> Tensor:
        """The drafts (M,) before the first one that the logits processors forbid, given equal logits."""
        if self._process is None:
            return drafts
        alike = torch.ones(1, self._vocabulary, dtype=torch.float32, device=drafts.device)
        for index, token in enumerate(drafts):
            if self._scores(alike, history)[0, token] <= torch.finfo(torch.float32).min:
                return drafts[:index]
            history = history.append(token[None])
        return drafts

    def _scores(self, alike: Tensor, history: History) -> Tensor:
        assert self._process is not None
        if self._fixed is None:
            return self._process(alike, history)
        if alike.device not in self._fixed:
            self._fixed[alike.device] = self._process(alike, history)
        return self._fixed[alike.device]


def continuations(text: Tensor, count: int, *, ngram: int) -> Iterator[Tensor]:
    """At most `count` tokens after each earlier occurrence of the last tokens of text (T,).

    Occurrences of `ngram` tokens come first, from left to right, then those of fewer.
    """
    for starts in occurrences(text, ngram=ngram):
        for start in starts.tolist():
            yield text[start : start + count]


def _chain(drawn: list[Tensor], text: RaggedBatch, drawn_from: list[Tensor] | None = None) -> Drafts:
    """A chain of drafts, from tokens of shape (1, 1)."""
    tokens = torch.cat((text.tokens[:, :0], *drawn), dim=1)
    probabilities = torch.stack(drawn_from, dim=1) if drawn_from else None
    return Drafts(tokens, torch.ones_like(tokens, dtype=torch.bool), probabilities=probabilities)


@torch.no_grad()
def hf_speculative_steps(
    model: LanguageModel,
    text: RaggedBatch,
    proposer: HFProposer,
    *,
    batch: SequenceBatch,
    process: LogitsProcessor | None = None,
    cache: DynamicCache | None = None,
    acceptance: Acceptance | None = None,
    recorder: RaggedScoreRecorder | None = None,
) -> Iterator[list[list[int]]]:
    """Sample one text with torch's global generator; each step yields a list with one list of its new tokens.

    text: the prompt, which grows. process: the logits processors. Other arguments as in `verify.speculative_steps`.
    """
    cache = _new_cache(model) if cache is None else cache
    acceptance = Acceptance() if acceptance is None else acceptance
    check(model, proposer.vocab_size, cache)
    (sequence,) = batch.sequences
    while not batch.is_over:
        drafts = proposer.propose(text, sequence.limit - len(sequence.token_ids) - 1)
        logits = score_drafts(model, text, drafts, cache).float()  # (1, 1 + M, V)
        scores = _scores(logits, drafts, text, process)
        right, last = decide(scores, drafts)
        new = append_accepted(sequence, [*drafts.tokens[0, :right].tolist(), last])
        acceptance.count(drafted=drafts.count, accepted=right, written=len(new))
        if recorder is not None:
            for index in range(len(new)):
                recorder.add(logits[:, index], scores[:, index], text.real[:, -1])
        chosen = torch.cat((drafts.tokens[:, :right], drafts.tokens.new_full((1, 1), last)), dim=1)
        text.append(chosen, torch.ones_like(chosen, dtype=torch.bool))
        for one in (cache, *proposer.caches):
            one.crop(min(one.length, text.width - 1))
        yield [new]


def _new_cache(model: LanguageModel) -> DynamicCache:
    """An empty cache of the class that the model itself makes: so the logits are bit-equal to those of plain decoding.

    That is a GrowingCache with CPU kernels, which write into its buffers.
    """
    return GrowingCache() if has_kernels(model) else DynamicCache()


def _scores(logits: Tensor, drafts: Drafts, text: RaggedBatch, process: LogitsProcessor | None) -> Tensor:
    """Scores after the text and after each draft: the logits (1, 1 + M, V) after the logits processors."""
    if process is None:
        return logits
    history, columns = text.history(), []
    for index in range(logits.shape[1]):
        columns.append(process(logits[:, index], history))
        if index < drafts.count:
            history = history.append(drafts.tokens[:, index])
    return torch.stack(columns, dim=1)


def decide(scores: Tensor, drafts: Drafts) -> tuple[int, int]:
    """How many of the M drafts are accepted, by scores (1, 1 + M, V), and the token after these.

    A drawn draft is accepted with probability min(1, wanted / drawn_from). The replacement of a rejected one is drawn
    from the residual distribution (arXiv:2211.17192). Other drafts are accepted if they equal a draw of the model.
    """
    wanted = scores.softmax(-1)[0]  # (1 + M, V)
    tokens = drafts.tokens[0]
    if drafts.probabilities is None:
        drawn = multinomial(wanted)[:, 0]  # all in one call, as in transformers: the random numbers depend on it
        right = _leading(drawn[:-1] == tokens)
        return right, int(drawn[right])
    drawn_from, steps = drafts.probabilities[0], torch.arange(drafts.count, device=tokens.device)
    ratio = wanted[steps, tokens] / drawn_from[steps, tokens]
    right = _leading(torch.rand_like(ratio) <= ratio)
    rest = wanted[right : right + 1]  # (1, V)
    if right < drafts.count:
        rest = residual(rest, drawn_from[right : right + 1])
        rest = rest / rest.sum()
    return right, int(multinomial(rest))


def _leading(flags: Tensor) -> int:
    """How many of the flags (M,) are set before the first that is not."""
    return int(flags.int().cumprod(0).sum())
