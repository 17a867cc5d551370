"""R5: the scheduler under any order of submissions, steps, drafts, ends and aborts: the invariants of
serving.md hold, I1 to I5 by `check_integrity`, and every text is a function of its prompt (I9).
"""

import hashlib
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llamita.engine.block_pool import BlockPool
from llamita.engine.scheduler import Request, Scheduled, Scheduler, Status, Step

VOCABULARY = 5  # few tokens, so that texts begin alike
SEEN: Counter[str] = Counter()  # what has happened in all runs, so that none of it is tested by chance


PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14)
Text = tuple[str | int, ...]  # the salt, which stands for the adapter that wrote the keys, then the tokens


def next_token(text: Text) -> int:
    """What the model that these tests imagine writes after a text."""
    return hashlib.sha256(repr(text).encode()).digest()[0] % VOCABULARY


class Slots:
    """Stands for the keys and values: each slot holds the whole text up to its token."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool, self.size = pool, pool.block_size
        self.written: dict[int, Text] = {}
        self._writers: dict[int, Request] = {}  # of this step, by block

    def run(self, step: Step) -> dict[Request, int]:
        """Write a step's slots; returns the next token of the requests whose tokens are then all computed."""
        self._writers.clear()
        for source, target, tokens in step.copies:
            for slot in range(tokens):
                self.written[target * self.size + slot] = self.written[source * self.size + slot]
        found: dict[Request, int] = {}
        for request, start, count in step.scheduled:
            assert count > 0, "without a token to compute there are no logits"
            self.write(request, start, request.token_ids[start : start + count])
            if start + count == request.num_tokens:
                found[request] = next_token(self.text(request, request.num_tokens))
        return found

    def write(self, request: Request, start: int, token_ids: list[int]) -> None:
        """Write tokens of a request; their blocks are its own, and not cached, as others read what is."""
        for number, token in enumerate(token_ids, start):
            block_id = request.block_ids[number // self.size]
            assert self._writers.setdefault(block_id, request) is request, "two requests write one block in one step"
            block = self.pool.blocks[block_id]
            assert (block.ref_count, block.digest) == (1, None), "a block is written that others may read"
            before = self.text(request, number)
            self.written[block_id * self.size + number % self.size] = (*before, token)

    def text(self, request: Request, length: int) -> Text:
        """The first tokens as the cache holds them: what attention would read."""
        slots = [request.block_ids[i // self.size] * self.size + i % self.size for i in range(length)]
        text = (request.salt, *(self.written[slot][-1] for slot in slots))
        assert not slots or self.written[slots[-1]] == text, "a slot holds another text's keys"
        return text


class Machine(RuleBasedStateMachine):
    """Any sequence of calls."""

    @initialize(
        blocks=st.integers(6, 16), size=st.sampled_from([1, 2, 4]), seats=st.integers(1, 6), budget=st.integers(6, 13)
    )
    def begin(self, blocks: int, size: int, seats: int, budget: int) -> None:
        pool = BlockPool(blocks, size)
        self.slots = Slots(pool)
        self.scheduler = Scheduler(pool, max_num_seqs=seats, max_num_batched_tokens=budget)
        self.limits: dict[Request, int] = {}

    @rule(
        prompts=st.lists(PROMPTS, min_size=1, max_size=4),
        more=st.integers(1, 8),
        salt=st.sampled_from(["", "a"]),
        priority=st.integers(-1, 1),
    )
    def add(self, prompts: list[list[int]], more: int, salt: str, priority: int) -> None:
        for prompt in prompts:
            if self.scheduler.pool.blocks_for(len(prompt) + more) <= self.scheduler.pool.num_blocks:
                request = Request(list(prompt), salt=salt, priority=priority)
                self.limits[request] = more
                self.scheduler.add(request)

    @precondition(lambda self: self.limits)
    @rule(number=st.integers(0, 100))
    def abort(self, number: int) -> None:
        request = list(self.limits)[number % len(self.limits)]
        del self.limits[request]
        self.scheduler.finish(request)
        self.scheduler.finish(request)  # twice is as good as once

    @rule(right=st.integers(0, 3), wrong=st.integers(0, 1))
    def step(self, right: int = 0, wrong: int = 0) -> None:
        """A step, with drafts of what each request writes next, of which the first ones are right."""
        had_work = self.scheduler.has_work
        step = self.scheduler.schedule()
        self._check_step(step)
        assert bool(step.scheduled) == had_work, "a step without progress"
        found = self.slots.run(step)
        drafts = {request: self._draft(request, token, right, wrong) for request, token in found.items()}
        self.scheduler.update(step)
        SEEN["copies"] += len(step.copies)
        for request, token in found.items():
            self._take(request, token, drafts[request])

    def _check_step(self, step: Step) -> None:
        """I6: a step has no more tokens and requests than it may, and each request once."""
        requests = [request for request, _, _ in step.scheduled]
        assert sum(count for _, _, count in step.scheduled) <= self.scheduler.max_num_batched_tokens
        assert len(set(requests)) == len(requests) <= self.scheduler.max_num_seqs

    def _draft(self, request: Request, token: int, right: int, wrong: int) -> list[int]:
        """Write drafts into the blocks that a request has; returns them."""
        drafts = [token]
        while len(drafts) < right:
            drafts.append(next_token((request.salt, *request.token_ids, *drafts)))
        drafts = drafts[:right] + wrong * [VOCABULARY]
        drafts = drafts[: len(request.block_ids) * self.slots.size - request.num_tokens]
        self.slots.write(request, request.num_tokens, drafts)
        return drafts

    def _take(self, request: Request, token: int, drafts: list[int]) -> None:
        """Give a request its next token, and those after it as long as they are the drafts."""
        for draft in (*drafts, None):
            request.token_ids.append(token)
            if request.num_tokens == request.num_prompt_tokens + self.limits[request]:
                self._check(request)
                self.scheduler.finish(request)
                return
            if token != draft:
                return
            self.scheduler.update(Step([Scheduled(request, request.num_computed_tokens, 1)], []))
            token = next_token(self.slots.text(request, request.num_tokens))
            SEEN["accepted"] += 1

    def _check(self, request: Request) -> None:
        text = request.token_ids[: request.num_prompt_tokens]
        while len(text) < request.num_tokens:
            text.append(next_token((request.salt, *text)))
        assert text == request.token_ids
        assert request.status is Status.RUNNING
        del self.limits[request]
        SEEN["done"] += 1
        SEEN["cached"] += request.num_cached_tokens or 0
        SEEN["preempted"] += request.num_preemptions

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(1000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "requests are never served"
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks


def test_r5_any_order() -> None:
    SEEN.clear()
    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None))
    assert {"accepted", "cached", "copies", "done", "preempted"} <= {name for name, count in SEEN.items() if count}
