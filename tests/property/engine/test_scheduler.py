"""R5: the scheduler under any order of submissions, steps, ends and aborts: every text is a function of its prompt."""

import hashlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llamita.engine.block_pool import BlockPool
from llamita.engine.scheduler import Request, Scheduler, Status, Step

VOCABULARY = 5  # few tokens, so that texts begin alike


def next_token(text: tuple[int, ...]) -> int:
    """What the model that these tests imagine writes after a text."""
    return hashlib.sha256(repr(text).encode()).digest()[0] % VOCABULARY


class Slots:
    """Stands for the keys and values: each slot holds the whole text up to its token."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.written: dict[int, tuple[int, ...]] = {}

    def run(self, step: Step) -> dict[Request, int]:
        """Write a step's slots; returns the next token of the requests whose tokens are then all computed."""
        for source, target, tokens in step.copies:
            for slot in range(tokens):
                self.written[target * self.size + slot] = self.written[source * self.size + slot]
        found: dict[Request, int] = {}
        touched: set[int] = set()
        for request, start, count in step.scheduled:
            for number in range(start, start + count):
                slot = request.block_ids[number // self.size] * self.size + number % self.size
                assert slot not in touched, "two requests write one slot in one step"
                touched.add(slot)
                before = self._text(request, number)
                self.written[slot] = (*before, request.token_ids[number])
            if start + count == request.num_tokens:
                found[request] = next_token(self._text(request, request.num_tokens))
        return found

    def _text(self, request: Request, length: int) -> tuple[int, ...]:
        """The first tokens as the cache holds them: what attention would read."""
        slots = [request.block_ids[i // self.size] * self.size + i % self.size for i in range(length)]
        text = tuple(self.written[slot][-1] for slot in slots)
        assert not slots or self.written[slots[-1]] == text, "a slot holds another text's keys"
        return text


class Machine(RuleBasedStateMachine):
    """Any sequence of calls."""

    @initialize(
        blocks=st.integers(6, 14), size=st.sampled_from([1, 2, 4]), seats=st.integers(1, 5), budget=st.integers(5, 12)
    )
    def begin(self, blocks: int, size: int, seats: int, budget: int) -> None:
        self.slots = Slots(blocks, size)
        self.scheduler = Scheduler(BlockPool(blocks, size), max_num_seqs=seats, max_num_batched_tokens=budget)
        self.limits: dict[Request, int] = {}
        self.done = 0

    @rule(
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=14),
        more=st.integers(1, 8),
        salt=st.sampled_from(["", "a"]),
        priority=st.integers(-1, 1),
    )
    def add(self, prompt: list[int], more: int, salt: str, priority: int) -> None:
        if self.scheduler.pool.blocks_for(len(prompt) + more) <= self.scheduler.pool.num_blocks:  # else it never runs
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

    @rule()
    def step(self) -> None:
        had_work = self.scheduler.has_work
        step = self.scheduler.schedule()
        assert sum(count for _, _, count in step.scheduled) <= max(
            self.scheduler.max_num_batched_tokens, len(self.scheduler.running)
        )
        assert bool(step.scheduled) == had_work, "a step without progress"
        found = self.slots.run(step)
        self.scheduler.update(step)
        for request, token in found.items():
            request.token_ids.append(token)
            if request.num_tokens == request.num_prompt_tokens + self.limits[request]:
                self._check(request)
                self.scheduler.finish(request)

    def _check(self, request: Request) -> None:
        text = request.token_ids[: request.num_prompt_tokens]
        while len(text) < request.num_tokens:
            text.append(next_token(tuple(text)))
        assert text == request.token_ids
        assert request.status is Status.RUNNING
        del self.limits[request]
        self.done += 1

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


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestR5AnyOrder = Machine.TestCase
