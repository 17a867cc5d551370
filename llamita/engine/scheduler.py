"""The scheduler: which tokens of which requests the next step computes, and where their keys and values go.

There is no phase of prompts and none of writing (vLLM v1): a request has tokens, some of them are computed, and each
step computes more of them within a budget. No torch here; the answer of a request does not depend on any choice made.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import NamedTuple

from llamita.engine.block_pool import BlockPool, PrefixMatch, root_digest

FAIR_STEPS = 16  # for which a step stays short after requests ran together
AGEING = 64  # steps of waiting that weigh as much as one level of priority


class Status(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """A text as the scheduler sees it: tokens, how many of them are computed, and its block table.

    token_ids: prompt and written tokens. salt: only requests of one salt share cached prefixes. priority: lower first.
    adapter: the name of the one that writes, None for the model itself; those of one salt have one adapter.
    block_ids: its blocks in order, in memory that kernels read.
    num_cached_tokens: tokens that were found in the cache when it was first scheduled. cached_instead: the token that
    the cache had after these, if any, instead of the text's own.
    """

    token_ids: list[int]
    salt: str = ""
    priority: int = 0
    adapter: str | None = None
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    cached_instead: int | None = None
    num_preemptions: int = 0
    num_stored_blocks: int = 0
    block_ids: "array[int]" = field(default_factory=lambda: array("q"))
    status: Status = Status.WAITING
    arrival: int = 0
    waits_since: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.digests = [root_digest(self.salt)]  # of the text up to each full block

    @property
    def num_tokens(self) -> int:
        """Tokens so far, prompt and written."""
        return len(self.token_ids)

    @property
    def num_missing(self) -> int:
        """Tokens that are not computed yet."""
        return self.num_tokens - self.num_computed_tokens


class Scheduled(NamedTuple):
    """Tokens of a request to compute in this step: `num_tokens` of them from number `start` on."""

    request: Request
    start: int
    num_tokens: int

    @property
    def new_token_ids(self) -> list[int]:
        """The tokens."""
        return self.request.token_ids[self.start : self.start + self.num_tokens]

    @property
    def is_last(self) -> bool:
        """Whether the next token of the text is known after it."""
        return self.start + self.num_tokens == self.request.num_tokens


class Copy(NamedTuple):
    """The first tokens of a block to copy to another block before the step."""

    source: int
    target: int
    tokens: int


class Step(NamedTuple):
    """What a step does: copies first, then the tokens. admitted: the requests that begin with it, or begin again."""

    scheduled: Sequence[Scheduled]
    copies: Sequence[Copy] = ()
    admitted: Sequence[Request] = ()


class Scheduler:
    """Requests that wait and requests that run, and the blocks that they hold.

    max_num_seqs: requests that run at once. max_num_batched_tokens: tokens of a step, all requests together.
    """

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in the order of priority, then of arrival
        self.num_steps = self.num_preemptions = 0
        self._arrivals = count()
        self._share, self._fair_until = max_num_batched_tokens, 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        request.arrival, request.waits_since = next(self._arrivals), self.num_steps
        self.waiting.append(request)

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, and release its blocks; once is enough."""
        if request.status is Status.FINISHED:
            return
        (self.running if request.status is Status.RUNNING else self.waiting).remove(request)
        self._store_full(request)
        self._store_tail(request)
        self._release(request)
        request.status = Status.FINISHED

    def schedule(self) -> Step:
        """Plan the next step: running requests first, then waiting ones, unless one had to be preempted."""
        scheduled, budget, before = list[Scheduled](), self.max_num_batched_tokens, self.num_preemptions
        order = list(self.running)
        self._share = self._fair_share()
        for number, request in enumerate(order, start=1):
            reserved = len(order) - number  # a token for each of the others
            if request.status is Status.RUNNING:
                start = request.num_computed_tokens
                tokens = min(len(request.token_ids) - start, self._share, max(1, budget - reserved))
                if self._grow(request, start + tokens):
                    scheduled.append(Scheduled(request, start, tokens))
                    budget -= tokens
        admitted, copies = list[Scheduled](), list[Copy]()
        if self.num_preemptions == before:
            self._admit(admitted, copies, budget)
        self.num_steps += 1
        return Step(scheduled + admitted, copies, [part.request for part in admitted])

    def update(self, step: Step) -> None:
        """Count a step's tokens as computed, once their keys and values are written, and cache prompts' full blocks."""
        for request, start, tokens in step.scheduled:
            if request.status is Status.RUNNING:
                assert request.num_computed_tokens == start
                request.num_computed_tokens = start + tokens
                if start < request.num_prompt_tokens:  # what is written after it can wait for its end
                    self._store_full(request)

    def check_integrity(self) -> None:
        """Raise AssertionError where a request, a block or a count does not agree with the others."""
        assert len(self.running) <= self.max_num_seqs
        for request in self.running:
            assert request.status is Status.RUNNING
            assert request.num_computed_tokens <= request.num_tokens
            assert self.pool.blocks_for(request.num_computed_tokens) <= len(request.block_ids)
            assert len(request.block_ids) <= self.pool.blocks_for(request.num_tokens)
        for request in self.waiting:
            assert request.status is Status.WAITING
            assert not request.block_ids
            assert not request.num_computed_tokens
        self.pool.check_integrity([request.block_ids for request in self.running])

    def _fair_share(self) -> int:
        """The most tokens of one request in this step: a quarter where there are others, or were a moment ago.

        A short request that comes while a long prompt is read waits for the end of the step; so steps stay short as
        long as such requests come, and are long where a prompt is alone.
        """
        if len(self.waiting) + len(self.running) > 1:
            self._fair_until = self.num_steps + FAIR_STEPS
        is_shared = self.num_steps < self._fair_until
        return max(1, self.max_num_batched_tokens // 4) if is_shared else self.max_num_batched_tokens

    def _grow(self, request: Request, tokens: int) -> bool:
        """Get a running request blocks for its tokens, preempting the last ones; False if it was the last itself."""
        needed = self.pool.blocks_for(tokens)
        while (missing := needed - len(request.block_ids)) > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        if missing > 0:
            request.block_ids.extend(self.pool.allocate(missing))
        return True

    def _preempt(self, request: Request) -> None:
        """Send a running request back to wait; it computes its tokens again, and writes none twice."""
        self.running.remove(request)
        self._store_full(request)
        self._release(request)
        request.status, request.waits_since = Status.WAITING, self.num_steps
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.append(request)

    def _admit(self, admitted: list[Scheduled], copies: list[Copy], budget: int) -> None:
        """Let those that wait begin, in their order, as long as there are tokens, blocks and seats."""
        # Without a free block none can begin, whatever is cached of it: even its last token is in a block of its own.
        while self.waiting and budget > 0 and self.pool.num_free and len(self.running) < self.max_num_seqs:
            request = min(self.waiting, key=self._urgency)
            found = self.pool.match(request.token_ids, salt=request.salt, limit=request.num_tokens - 1)
            # The block that a tail is copied from is one more than the text needs, which may be one too many.
            for match in (found, found.without_tail()):
                computed = self.pool.tokens_of(match)
                tokens = min(request.num_tokens - computed, self._share, budget)
                blocks = self.pool.blocks_for(computed + tokens) - len(match.block_ids)
                if blocks <= self.pool.num_free_without(match.held):
                    break
            else:
                return
            self.waiting.remove(request)
            copies += self._begin(request, match, blocks)
            admitted.append(Scheduled(request, computed, tokens))
            budget -= tokens

    def _begin(self, request: Request, match: PrefixMatch, blocks: int) -> list[Copy]:
        """Let a waiting request run from the end of what the cache has of it, with this number of new blocks.

        Returns what is to be copied before.
        """
        copies = list[Copy]()
        self.pool.hold(match.held)
        request.block_ids = array("q", match.block_ids + self.pool.allocate(blocks))
        if match.tail is not None:
            copies.append(Copy(match.tail, request.block_ids[len(match.block_ids)], match.tail_tokens))
            self.pool.release([match.tail])  # copies come before all that the step writes
        request.status, request.num_computed_tokens = Status.RUNNING, self.pool.tokens_of(match)
        if request.num_cached_tokens is None:
            request.num_cached_tokens, request.cached_instead = request.num_computed_tokens, match.other
        self.running.append(request)
        self.running.sort(key=lambda one: (one.priority, one.arrival))
        return copies

    def _urgency(self, request: Request) -> tuple[int, int]:
        return request.priority - (self.num_steps - request.waits_since) // AGEING, request.arrival

    def _release(self, request: Request) -> None:
        self.pool.release(request.block_ids)
        request.block_ids, request.num_computed_tokens, request.num_stored_blocks = array("q"), 0, 0

    def _store_full(self, request: Request) -> None:
        """Let the blocks that a request has filled be found by others."""
        size = self.pool.block_size
        for number in range(request.num_stored_blocks, request.num_computed_tokens // size):
            self._store(request, number, size)
            request.num_stored_blocks += 1

    def _store(self, request: Request, number: int, tokens: int) -> None:
        """Let the first tokens of a block of a request be found by others."""
        start = number * self.pool.block_size
        parent = request.digests[number]
        digest = self.pool.store(request.block_ids[number], parent, tuple(request.token_ids[start : start + tokens]))
        if tokens == self.pool.block_size and len(request.digests) == number + 1:
            request.digests.append(digest)

    def _store_tail(self, request: Request) -> None:
        """Let the last block of a text that ends be found by the tokens it has."""
        full, rest = divmod(request.num_computed_tokens, self.pool.block_size)
        if rest and full == request.num_stored_blocks:
            self._store(request, full, rest)
