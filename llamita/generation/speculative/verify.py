"""Speculative decoding: draft several tokens, verify them in one pass, keep those the model would have chosen.

The output has exactly the model's distribution. Drawn drafts are accepted or replaced by the rule of arXiv:2211.17192.
For all others the model chooses its own token and goes on as long as the draft has the same one; so a greedy or seeded
text equals that of plain decoding.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.errors import UsageError
from llamita.generation.outputs import RaggedScoreRecorder
from llamita.generation.protocol import LanguageModel
from llamita.generation.run import Acceptance
from llamita.generation.runner import read_ragged
from llamita.generation.sequence import Sequence, SequenceBatch
from llamita.generation.speculative.proposers import Drafts, Proposer
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.kernels.cpu.linear import FEW
from llamita.model.plan import active
from llamita.sampling.selection import TokenSelector

HOLES = 0.25  # the share of the slots that may be holes before the caches are compacted
CHEAP = 0.1  # a cache below this share of the weights' bytes is compacted at once


@torch.no_grad()
def speculative_steps(
    model: LanguageModel,
    text: RaggedBatch,
    proposer: Proposer,
    *,
    batch: SequenceBatch,
    selector: TokenSelector,
    cache: DynamicCache | None = None,
    acceptance: Acceptance | None = None,
    recorder: RaggedScoreRecorder | None = None,
) -> Iterator[list[list[int]]]:
    """Write until every row has ended; each step yields one or more new tokens for each row, as lists.

    text: the prompts, which grow. cache: of their first slots. acceptance: counts drafts. recorder: of logits and
    scores. A row drafts one token more than were accepted the last time, or twice as many if all were.
    Greedy rows equal plain decoding up to ties in rounding. Rotary types whose frequencies depend on the length see
    that of a whole pass, drafts included.
    """
    cache = GrowingCache() if cache is None else cache
    acceptance = Acceptance() if acceptance is None else acceptance
    check(model, proposer.vocab_size, cache)
    for own in proposer.caches:  # may hold an earlier text
        own.reset()
    worth = most_drafts(batch, text.real.device)  # (B,) how many drafts pay off
    acceptance.limit = limit = draft_limit(model, len(text.real))
    while not batch.is_over:
        most = torch.minimum(most_drafts(batch, text.real.device), worth).clamp(max=limit)
        drafts = proposer.propose(text, most, selector=selector, cache=cache)
        logits = score_drafts(model, text, drafts, cache)  # (B, 1 + M, V)
        result = verify(logits, drafts, selector, text, alive=_running(batch, text.real.device), recorder=recorder)
        new = [append_accepted(row, result.column(number)) for number, row in enumerate(batch.sequences)]
        _count(acceptance, drafts, result, new)
        _commit(text, drafts, result, _running(batch, text.real.device), [cache, *proposer.caches])
        worth = torch.where(result.failed, result.counts, torch.maximum(worth, 2 * (result.counts - 1)))
        if text.holes():
            text.compact([cache, *proposer.caches], tolerated=_tolerated(model, cache))
        yield new


def draft_limit(model: LanguageModel, rows: int) -> int:
    """The most drafts that a row may have in a pass over `rows` rows; 0 turns drafting off.

    With kernels a pass of up to FEW rows, drafts included, costs little more than one of a single row, as memory is
    the limit; beyond that every row costs as much as the last (`llamita bench rows`), and a draft costs more than the
    token that it may save.
    """
    return max(0, FEW // rows - 1) if has_kernels(model) else sys.maxsize


def _tolerated(model: LanguageModel, cache: DynamicCache) -> float:
    """The share of the slots that may be holes.

    It is 0 for a cache much smaller than the weights, as our kernels read no holes, and with a sliding window, which
    counts slots: with holes it would hide too much.
    """
    weights = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
    return 0.0 if model.config.sliding_window is not None or cache.nbytes < CHEAP * weights else HOLES


def has_kernels(model: LanguageModel) -> bool:
    """Whether the CPU's kernels, and no other plan, stand in for the model's forward."""
    return isinstance(model, nn.Module) and "kernels" in active(model)


def most_drafts(batch: SequenceBatch, device: torch.device) -> Tensor:
    """The most drafts of each row, (B,): one less than it may still write, as the model adds one itself."""
    left = [0 if row.finish is not None else row.limit - len(row.token_ids) - 1 for row in batch.sequences]
    return torch.tensor(left, device=device)


@dataclass(frozen=True, eq=False)
class VerifyResult:
    """The result of verifying drafts.

    chosen: (B, depth) the new tokens of each row; counts: (B,) how many, 0 in rows that had ended.
    accepted: (B, M) bool, which drafts. failed: (B,) bool, whether a draft was rejected. last: (B,) the last
    new token of each, which was not drafted.
    """

    chosen: Tensor
    counts: Tensor
    accepted: Tensor
    failed: Tensor
    last: Tensor

    def column(self, row: int) -> list[int]:
        """The tokens of one row."""
        return self.chosen[row, : int(self.counts[row])].tolist()


def verify(
    logits: Tensor,
    drafts: Drafts,
    selector: TokenSelector,
    text: RaggedBatch,
    *,
    alive: Tensor,
    recorder: RaggedScoreRecorder | None = None,
) -> VerifyResult:
    """Accept the drafts of every row that is `alive` (B,), in order, as long as the model agrees.

    logits: (B, 1 + M, V), after the text and after each draft. recorder: records those of every new token.
    """
    rows = torch.arange(len(alive), device=alive.device)
    parents = range(-1, drafts.count - 1) if drafts.parents is None else drafts.parents
    follows = torch.tensor(list(parents), dtype=torch.long, device=alive.device) + 1  # 0 is the text's end
    history = None if selector.process is None else text.history()
    is_plain = selector.is_plain and recorder is None
    likeliest = logits.argmax(-1) if is_plain else None  # at once for all, where nothing else is asked
    standing, accepted, columns = torch.zeros_like(rows), torch.zeros_like(drafts.valid), []
    counts, last, failed = torch.zeros_like(rows), text.tokens[:, -1], torch.zeros_like(alive)
    while bool(alive.any()):
        is_next = (follows == standing[:, None]) & drafts.valid & alive[:, None]  # (B, M)
        if likeliest is not None:
            token = likeliest[rows, standing]
        else:
            own = logits[rows, standing].float()  # (B, V)
            scores = selector.scores(own, history)
            token = _token(scores, drafts, is_next, selector, alive)
            if recorder is not None:
                recorder.add(own, scores, alive)
        columns.append(token)
        counts, last = counts + alive, torch.where(alive, token, last)
        is_met = is_next & (drafts.tokens == token[:, None])
        alive = is_met.any(-1)
        failed |= is_next.any(-1) & ~alive
        accepted |= is_met
        standing = torch.where(alive, is_met.int().argmax(-1) + 1 if drafts.count else standing, standing)
        history = None if history is None else history.append(token)
    return VerifyResult(torch.stack(columns, dim=1), counts, accepted, failed, last)


def _token(scores: Tensor, drafts: Drafts, is_next: Tensor, selector: TokenSelector, alive: Tensor) -> Tensor:
    """The model's token (B,) by scores (B, V): for a drawn draft, the draft or its replacement; else its own choice."""
    wanted = selector.probabilities(scores)  # (B, V)
    if drafts.probabilities is None:
        return selector.draw(wanted, alive)
    rows, number = torch.arange(len(alive), device=alive.device), is_next.int().argmax(-1)
    draft, drawn_from = drafts.tokens[rows, number], drafts.probabilities[rows, number]  # (B,), (B, V)
    has_draft = is_next.any(-1)
    threshold = selector.uniform(has_draft) * drawn_from[rows, draft]
    is_accepted = has_draft & (threshold < wanted[rows, draft])
    drawn = selector.draw(torch.where(has_draft[:, None], residual(wanted, drawn_from), wanted), alive & ~is_accepted)
    return torch.where(is_accepted, draft, drawn)


def residual(wanted: Tensor, drawn_from: Tensor) -> Tensor:
    """The distribution (B, V), up to a factor, of the replacement of a rejected draft: max(0, wanted - drawn_from)."""
    missing = (wanted - drawn_from).clamp(min=0)
    return torch.where(missing.sum(-1, keepdim=True) > 0, missing, wanted)


def score_drafts(model: LanguageModel, text: RaggedBatch, drafts: Drafts, cache: DynamicCache) -> Tensor:
    """Logits (B, 1 + M, V) after the text and after each draft, in one pass."""
    new = torch.cat((text.tokens, drafts.tokens), dim=1)[:, cache.length :]
    # Invalid drafts come last in a row, so they need not be hidden.
    real = text.real if drafts.parents else torch.cat((text.real, torch.ones_like(drafts.valid)), dim=1)
    return read_ragged(model, new, real, cache, keep=1 + drafts.count, parents=drafts.parents)


def append_accepted(sequence: Sequence, chosen: list[int]) -> list[int]:
    """Append tokens to a row until it ends; returns those it took."""
    taken = []
    for token in chosen:
        if sequence.finish is not None:
            break
        sequence.push(token)
        taken.append(token)
    return taken


def _commit(
    text: RaggedBatch, drafts: Drafts, result: VerifyResult, running: Tensor, caches: list[DynamicCache]
) -> None:
    """Append the accepted drafts and the last token to the text, and crop the caches to it."""
    used = result.accepted.any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 0
    ended = ~running[:, None]  # any token will do there, as long as there is no hole
    text.append(drafts.tokens[:, :width], result.accepted[:, :width] | ended)
    for cache in caches:
        cache.crop(min(cache.length, text.width))
    text.append(result.last[:, None], torch.ones_like(ended))


def _running(batch: SequenceBatch, device: torch.device) -> Tensor:
    return torch.tensor([row.finish is None for row in batch.sequences], device=device)


def _count(acceptance: Acceptance, drafts: Drafts, result: VerifyResult, new: list[list[int]]) -> None:
    for row, count in enumerate(result.counts.tolist()):
        if count:
            acceptance.count(drafted=int(drafts.valid[row].sum()), accepted=count - 1, written=len(new[row]))


def check(model: LanguageModel, vocab_size: int | None, cache: DynamicCache) -> None:
    """Raise UsageError for a proposer with another vocabulary, and for a cache that cannot be cropped."""
    if vocab_size not in (None, model.config.vocab_size):
        raise UsageError(
            f"the draft model has {vocab_size} tokens and the model {model.config.vocab_size}: use one with "
            "the same tokenizer"
        )
    if not isinstance(cache, DynamicCache):
        raise UsageError(f"speculation cannot take tokens back from a {type(cache).__name__}: use DynamicCache")
