"""Drafts of how texts go on: from a smaller model, the model's own first layers, or the text itself."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Protocol

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.context.tree import lineage
from llamita.errors import UsageError
from llamita.generation.protocol import LanguageModel
from llamita.generation.runner import read_ragged
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.sampling.history import LogitsProcessor
from llamita.sampling.selection import TokenSelector

MOST_DRAFTS = 4096  # in one tree


@dataclass(frozen=True, eq=False)
class Drafts:
    """M drafts after each text.

    tokens: (B, M). valid: (B, M) bool, which are drafts; a token after an invalid one is invalid.
    parents: the draft that each one follows, -1 for the end of the text; None for a chain.
    probabilities: (B, M, V), the distributions of a drawn chain; None if it was not drawn.
    """

    tokens: Tensor
    valid: Tensor
    parents: Sequence[int] | None = None
    probabilities: Tensor | None = None

    @property
    def count(self) -> int:
        """M."""
        return self.tokens.shape[1]


class Proposer(Protocol):
    """Proposes drafts; its state is in caches, which have the slots of the texts."""

    @property
    def vocab_size(self) -> int | None:
        """The size of its vocabulary; None if drafts come from the text."""
        ...

    @property
    def caches(self) -> list[DynamicCache]:
        """Its caches of the first slots, which are cropped and compacted with the texts."""
        ...

    def propose(self, text: RaggedBatch, most: Tensor, *, selector: TokenSelector, cache: DynamicCache) -> Drafts:
        """Propose at most `most` (B,) drafts a row. `cache` is the target's; it is read, never changed."""
        ...


class PromptLookupProposer:
    """Finds the last tokens earlier in the text, and proposes the tokens after them.

    length: the most drafts. ngram: how many last tokens to look for; fewer if they are not found.
    Raises UsageError for less than 1 of either.
    """

    vocab_size = None

    def __init__(self, *, length: int = 10, ngram: int = 2) -> None:
        if length < 1 or ngram < 1:
            raise UsageError(f"prompt lookup of {length} tokens by {ngram}: give 1 or more")
        self.length = length
        self.ngram = ngram

    @property
    def caches(self) -> list[DynamicCache]:
        """None: it reads only the text."""
        return []

    def propose(self, text: RaggedBatch, most: Tensor, *, selector: TokenSelector, cache: DynamicCache) -> Drafts:
        """The continuation (B, M) of an earlier occurrence; rows without one have no drafts."""
        counts = most.clamp(max=self.length).tolist()
        found = [follow(text.row(row), count, ngram=self.ngram) for row, count in enumerate(counts)]
        lengths = torch.tensor([len(tokens) for tokens in found], device=most.device)
        tokens = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)  # (B, M)
        return Drafts(tokens, torch.arange(tokens.shape[1], device=most.device) < lengths[:, None])


def follow(text: Tensor, count: int, *, ngram: int) -> Tensor:
    """At most `count` tokens after an earlier occurrence of the last tokens of text (T,).

    The latest occurrence with `count` tokens after it; else the earliest, which has the most.
    """
    for starts in occurrences(text, ngram=ngram):
        if count > 0 and len(starts):
            complete = starts[starts + count <= len(text)]
            start = int(complete[-1] if len(complete) else starts[0])
            return text[start : start + count]
    return text[:0]


def occurrences(text: Tensor, *, ngram: int) -> Iterator[Tensor]:
    """The ends (n,) of earlier occurrences of the last tokens of text (T,): for `ngram` tokens, then for fewer."""
    for size in range(min(ngram, len(text) - 1), 0, -1):
        yield (text[:-1].unfold(0, size, 1) == text[-size:]).all(-1).nonzero()[:, 0] + size


class DraftModelProposer:
    """A smaller model of the same vocabulary proposes a chain, chosen by the rules of the target.

    length: the most drafts. confidence: a row stops where the most probable token has a lower probability than this
    (tested before the draw, so that the result stays exact). Raises UsageError for a length below 1.
    """

    def __init__(self, model: LanguageModel, *, length: int = 5, confidence: float = 0.0) -> None:
        if length < 1:
            raise UsageError(f"a draft of {length} tokens: give 1 or more")
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.length = length
        self.confidence = confidence
        self._own = GrowingCache()

    @property
    def caches(self) -> list[DynamicCache]:
        """The draft model's own cache."""
        return [self._own]

    def cache(self, target: DynamicCache) -> DynamicCache:
        """The cache to draft with, given the target's."""
        return self._own

    def propose(self, text: RaggedBatch, most: Tensor, *, selector: TokenSelector, cache: DynamicCache) -> Drafts:
        """A chain of drafts, drawn if the target draws."""
        cache = self.cache(cache)
        history = None if selector.process is None else text.history()
        new, real, valid = text.tokens[:, cache.length :], text.real, most > 0
        drafted: list[tuple[Tensor, Tensor]] = []
        drawn_from: list[Tensor] = []
        for depth in range(min(self.length, int(most.max()))):
            logits = read_ragged(self.model, new, real, cache)[:, 0]
            scores = selector.scores(logits, history)
            valid = valid & (most > depth)
            if self.confidence:
                valid = valid & (scores.softmax(-1).amax(-1) >= self.confidence)  # greedy rows have a doubt too
                if not bool(valid.any()):
                    break
            if selector.is_greedy:
                token = scores.argmax(-1)
            else:
                drawn_from.append(selector.probabilities(scores))
                token = selector.draw(drawn_from[-1], valid)
            drafted.append((token, valid))
            # An invalid token need not be hidden: all tokens after it are invalid too.
            new, real = token[:, None], torch.cat((real, torch.ones_like(valid[:, None])), dim=1)
            history = None if history is None else history.append(token)
        return _chain(drafted, drawn_from, text)


def _chain(drafted: list[tuple[Tensor, Tensor]], drawn_from: list[Tensor], text: RaggedBatch) -> Drafts:
    if not drafted:
        return Drafts(text.tokens[:, :0], text.real[:, :0])
    tokens, valid = (torch.stack(column, dim=1) for column in zip(*drafted, strict=True))
    return Drafts(tokens, valid, probabilities=torch.stack(drawn_from, dim=1) if drawn_from else None)


class DraftTreeProposer:
    """A smaller model proposes a tree: the `branches[d]` most probable tokens after each draft of depth d.

    proposer: a draft model, or an early exit of the target. Raises UsageError for a tree that is empty or too large.
    """

    def __init__(self, proposer: LanguageModel | DraftModelProposer, *, branches: Sequence[int] = (3, 2, 1)) -> None:
        if not branches or min(branches) < 1:
            raise UsageError(f"a draft tree of branches {tuple(branches)}: give 1 or more at each depth")
        if sum(accumulate(branches, mul)) > MOST_DRAFTS:
            raise UsageError(
                f"a draft tree of branches {tuple(branches)} is too large: give at most {MOST_DRAFTS} drafts"
            )
        self.branches = tuple(branches)
        self._proposer = proposer if isinstance(proposer, DraftModelProposer) else DraftModelProposer(proposer)
        self.vocab_size = self._proposer.vocab_size

    @property
    def caches(self) -> list[DynamicCache]:
        """Those of the proposer."""
        return self._proposer.caches

    def propose(self, text: RaggedBatch, most: Tensor, *, selector: TokenSelector, cache: DynamicCache) -> Drafts:
        """A tree, level by level; the same shape in all rows."""
        cache = self._proposer.cache(cache)
        parents, level = [], [-1]  # the drafts of the deepest level; -1 is the text's end
        tokens, valid = text.tokens[:, :0], text.real[:, :0]
        for depth, width in enumerate(self.branches[: int(most.max())]):
            new = torch.cat((text.tokens, tokens), dim=1)[:, cache.length :]
            logits = read_ragged(self._proposer.model, new, text.real, cache, keep=len(level), parents=parents)
            scores = logits if selector.process is None else _processed(logits, text, tokens, parents, selector.process)
            likeliest = scores.topk(min(width, scores.shape[-1])).indices.flatten(1)  # (B, len(level) * width)
            tokens = torch.cat((tokens, likeliest), dim=1)
            valid = torch.cat((valid, (most > depth)[:, None].expand_as(likeliest)), dim=1)
            parents += [parent for parent in level for _ in range(width)]
            level = list(range(len(parents) - likeliest.shape[1], len(parents)))
        return Drafts(tokens, valid, parents)


def _processed(
    logits: Tensor, text: RaggedBatch, tokens: Tensor, parents: Sequence[int], process: LogitsProcessor
) -> Tensor:
    """Scores (B, nodes, V) after the deepest drafts, or after the text."""
    lines = lineage(parents)[-logits.shape[1] :] or [[]]
    start, columns = text.history(), []
    for column, line in enumerate(lines):
        history = start
        for number in line:
            history = history.append(tokens[:, number])
        columns.append(process(logits[:, column].float(), history))
    return torch.stack(columns, dim=1)


class EarlyExitProposer(DraftModelProposer):
    """The model's own first layers, norm and head propose drafts (arXiv:2404.16710), on their part of the cache."""

    def __init__(self, model: LanguageModel, *, layers: int, length: int = 5, confidence: float = 0.0) -> None:
        super().__init__(model.first_layers(layers), length=length, confidence=confidence)
        self.layers = layers

    @property
    def caches(self) -> list[DynamicCache]:
        """None: it uses the first layers of the target's cache."""
        return []

    def cache(self, target: DynamicCache) -> DynamicCache:
        """The first layers of the target's cache; it grows by concatenation, so the target's stay as they are."""
        shared = copy(target)
        shared.keys, shared.values = target.keys[: self.layers], target.values[: self.layers]
        return shared
