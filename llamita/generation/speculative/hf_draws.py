"""Compatibility: one text that is guessed ahead and drawn without a seed repeats transformers' random numbers.

Under the same torch.manual_seed the text is that of transformers' assisted generation (5.23), whose random numbers
depend on every guess, accepted or not. So guesses are made here as there, whatever they are worth.
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

REREAD = 2  # tokens that transformers' draft model reads at the start of a round, whether it knows them or not


class HFProposer(Protocol):
    """Guesses how one text goes on; see `drafts.Proposer`."""

    @property
    def vocab_size(self) -> int | None:
        """How many tokens it knows; None where it takes them from the text."""
        ...

    @property
    def caches(self) -> list[DynamicCache]:
        """Its own caches of the text."""
        ...

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """Guess, where `most` guesses at most can be of use."""
        ...


class HFDraftProposer:
    """A draft model, or the model's first layers, that draws its guesses as the target would.

    It stops behind an end token, and behind a token of its own that is less likely than `proposer.confidence`. Padding
    tokens that were written are hidden from it (they are not from the target), where the prompt has no padding; None
    hides none.
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
        # Of an early exit too: hidden tokens leave other keys than the target's.
        self._cache = _new_cache(proposer.model)
        self.vocab_size = proposer.vocab_size
        self.caches: list[DynamicCache] = [self._cache]

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """A chain of drawn guesses, with what they were drawn from."""
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
        """Which tokens of the text (1, S) are shown: bool."""
        return text.tokens != self._padding if self._padding is not None and bool(text.real.all()) else text.real

    def _read(self, new: Tensor, shown: Tensor, real: Tensor) -> Tensor:
        """Logits (1, V) behind new tokens, whose positions count the hidden ones before them."""
        start = self._cache.length
        counted = torch.arange(start, start + new.shape[1], device=new.device)[None]
        positions = None if torch.equal(shown[:, : real.shape[1]], real) else counted
        return read_ragged(self._proposer.model, new, shown, self._cache, positions=positions)[:, 0].float()

    def _is_last(self, token: int, probabilities: Tensor) -> bool:
        return token in self._ends or float(probabilities[0, token]) < self._proposer.confidence


class HFLookupProposer:
    """Guesses what followed the last tokens where they first stood in the text; where they did not, fewer of them.

    A guess goes as far as the process forbids none of it, and not to an end token; past the end of what may be
    written it may go. vocabulary: how many tokens the model knows.
    """

    def __init__(
        self, proposer: PromptLookupProposer, *, process: LogitsProcessor | None, ends: Collection[int], vocabulary: int
    ) -> None:
        self._proposer = proposer
        self._process, self._vocabulary = process, vocabulary
        self._ends = frozenset(ends)
        self.vocab_size, self.caches = proposer.vocab_size, proposer.caches
        # What a chain of filters forbids is always the same; None where it must be asked at every token.
        is_fixed = isinstance(process, LogitsProcessorList) and not process.reads_text
        self._fixed: dict[torch.device, Tensor] | None = {} if is_fixed else None

    def propose(self, text: RaggedBatch, most: int) -> Drafts:
        """The first continuation of which anything is allowed, up to an end token."""
        if most > 0:
            history = text.history()
            for follows in continuations(text.row(0), self._proposer.length, ngram=self._proposer.ngram):
                if len(guess := self._allowed(follows, history)):
                    return _chain(self._before_end(guess), text)
        return _chain([], text)

    def _before_end(self, guess: Tensor) -> list[Tensor]:
        ids = guess.tolist()
        end = next((index for index, token in enumerate(ids) if token in self._ends), len(ids))
        return [token.view(1, 1) for token in guess[:end]]

    def _allowed(self, guess: Tensor, history: History) -> Tensor:
        """The guess (M,) up to a token that the process forbids, even where all logits are the same."""
        if self._process is None:
            return guess
        alike = torch.ones(1, self._vocabulary, device=guess.device)
        for index, token in enumerate(guess):
            if self._scores(alike, history)[0, token] <= torch.finfo(torch.float32).min:
                return guess[:index]
            history = history.append(token[None])
        return guess

    def _scores(self, alike: Tensor, history: History) -> Tensor:
        assert self._process is not None
        if self._fixed is None:
            return self._process(alike, history)
        if alike.device not in self._fixed:
            self._fixed[alike.device] = self._process(alike, history)
        return self._fixed[alike.device]


def continuations(text: Tensor, count: int, *, ngram: int) -> Iterator[Tensor]:
    """What followed the last tokens of text (T,) wherever they stood before, at most `count` tokens.

    The places of the most last tokens come first, from left to right.
    """
    for starts in occurrences(text, ngram=ngram):
        for start in starts.tolist():
            yield text[start : start + count]


def _chain(drawn: list[Tensor], text: RaggedBatch, drawn_from: list[Tensor] | None = None) -> Drafts:
    """Guesses (1, 1) each, behind one another."""
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
    """Draw one text to its end from torch's global generator; each step yields a list of its new tokens, in a list.

    text: the prompt, which grows. process: what makes scores of logits. The rest is as in `verify.speculative_steps`.
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
    """An empty cache of the kind that the model itself begins: then its logits are those of plain decoding to the bit.

    The CPU's kernels write into one that grows in place.
    """
    return GrowingCache() if has_kernels(model) else DynamicCache()


def _scores(logits: Tensor, drafts: Drafts, text: RaggedBatch, process: LogitsProcessor | None) -> Tensor:
    """What the process makes of the logits (1, 1 + M, V) behind the text and behind each guess."""
    if process is None:
        return logits
    history, columns = text.history(), []
    for index in range(logits.shape[1]):
        columns.append(process(logits[:, index], history))
        if index < drafts.count:
            history = history.append(drafts.tokens[:, index])
    return torch.stack(columns, dim=1)


def decide(scores: Tensor, drafts: Drafts) -> tuple[int, int]:
    """How many of the M guesses are right, by scores (1, 1 + M, V), and the token behind these.

    A drawn guess is right with the probability min(1, wanted / guessed), and what replaces a wrong one is drawn from
    what was guessed too rarely (arXiv:2211.17192). Others are right where a draw behind each says the same.
    """
    wanted = scores.softmax(-1)[0]  # (1 + M, V)
    guesses = drafts.tokens[0]
    if drafts.probabilities is None:
        drawn = multinomial(wanted)[:, 0]  # of all at once, as transformers draws them
        right = _leading(drawn[:-1] == guesses)
        return right, int(drawn[right])
    guessed, steps = drafts.probabilities[0], torch.arange(drafts.count, device=guesses.device)
    ratio = wanted[steps, guesses] / guessed[steps, guesses]
    right = _leading(torch.rand_like(ratio) <= ratio)
    rest = wanted[right : right + 1]  # (1, V)
    if right < drafts.count:
        rest = residual(rest, guessed[right : right + 1])
        rest = rest / rest.sum()
    return right, int(multinomial(rest))


def _leading(flags: Tensor) -> int:
    """How many of the flags (M,) are set before the first that is not."""
    return int(flags.int().cumprod(0).sum())
