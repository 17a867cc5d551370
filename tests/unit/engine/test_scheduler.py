"""The scheduler's choices; that they never change a text is tests/property/engine's."""

import subprocess
import sys

import pytest

from llamita.engine.block_pool import BlockPool
from llamita.engine.scheduler import AGEING, FAIR_STEPS, Request, Scheduler, Status


def scheduler(blocks: int = 100, *, seats: int = 8, budget: int = 16) -> Scheduler:
    """A scheduler of blocks of four tokens."""
    return Scheduler(BlockPool(blocks, 4), max_num_seqs=seats, max_num_batched_tokens=budget)


def text(length: int, first: int) -> list[int]:
    """A text that begins unlike any other."""
    return [first, *range(1000, 1000 + length - 1)]


def counts(of: Scheduler) -> list[tuple[int, int]]:
    """What the next step computes: the first token of each request and how many of it, as if it then wrote one more."""
    step = of.schedule()
    of.update(step)
    for request, start, tokens in step.scheduled:
        if start + tokens == request.num_tokens:
            request.token_ids.append(7)
    of.check_integrity()
    return [(request.token_ids[0], tokens) for request, _, tokens in step.scheduled]


def test_a_long_prompt_is_read_in_parts_which_are_short_while_others_come() -> None:
    of = scheduler()
    of.add(Request(text(60, 1)))
    assert counts(of) == [(1, 16)]
    short = Request(text(3, 2))
    of.add(short)
    assert counts(of) == [(1, 4), (2, 3)]
    assert counts(of) == [(1, 4), (2, 1)]
    of.finish(short)
    assert counts(of) == [(1, 4)]  # another one may come
    of.num_steps += FAIR_STEPS
    assert counts(of) == [(1, 16)]


def test_a_step_has_no_more_tokens_than_its_budget() -> None:
    of = scheduler(budget=9)
    for first in range(1, 7):
        of.add(Request(text(20, first)))
    assert counts(of) == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 1)]
    assert counts(of) == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 1)]  # all of those that run, none that waits


def test_a_step_leaves_a_token_for_whoever_writes() -> None:
    of = scheduler(budget=4)
    for first in (1, 2, 3):
        of.add(Request(text(4, first)))
    while len(of.running) < 3 or any(request.num_missing > 1 for request in of.running):
        counts(of)
    of.running[0].token_ids += [5] * 9  # as if it had to read on
    assert counts(of) == [(1, 1), (2, 1), (3, 1)]


def test_r23_short_requests_are_written_while_a_long_prompt_is_read() -> None:
    """The budget is the steps' length: a first token within three steps is at most three times that of no load."""
    of = scheduler(600, seats=16, budget=128)
    of.add(Request(text(2000, 0)))
    counts(of)
    shorts = [Request(text(8, first)) for first in range(1, 11)]
    for one in shorts:
        of.add(one)
    begun: list[int] = []
    for _ in range(3):
        begun += [first for first, _ in counts(of) if first and first not in begun]
    assert begun == list(range(1, 11))  # all of them, in the order in which they came
    assert all(one.num_tokens > one.num_prompt_tokens for one in shorts)
    assert of.running[0].num_missing > 1000


def test_r23_r24_seats_are_given_by_priority_then_by_arrival() -> None:
    of = scheduler(seats=2)
    for first, priority in ((1, 0), (2, 1), (3, -1), (4, 0)):
        of.add(Request(text(2, first), priority=priority))
    assert counts(of) == [(3, 2), (1, 2)]
    assert counts(of) == [(3, 1), (1, 1)]


def test_r24_waiting_raises_the_priority() -> None:
    of = scheduler(seats=1)
    low = Request(text(2, 1), priority=1)
    of.add(low)
    of.num_steps += 2 * AGEING
    of.add(Request(text(2, 2)))
    assert counts(of) == [(1, 2)]


def test_the_last_to_come_is_preempted_and_computes_again() -> None:
    of = scheduler(6, budget=32)
    first, second = Request(text(8, 1)), Request(text(8, 2))
    of.add(first)
    of.add(second)
    assert counts(of) == [(1, 8), (2, 8)]
    for _ in range(4):
        assert counts(of) == [(1, 1), (2, 1)]
    assert counts(of) == [(1, 1)]  # no block is left for both
    assert (second.status, second.num_preemptions, of.num_preemptions) == (Status.WAITING, 1, 1)
    for _ in range(3):
        counts(of)
    of.finish(first)
    assert counts(of) == [(2, 13)] or second.num_computed_tokens == second.num_tokens - 1
    assert second.status is Status.RUNNING


def test_a_tail_is_not_copied_where_no_block_is_left_for_it() -> None:
    of = scheduler(3)
    first = Request(text(10, 1))
    of.add(first)
    counts(of)
    of.finish(first)
    second = Request([*first.token_ids[:9], 5, 6, 7])
    of.add(second)
    step = of.schedule()
    assert (second.num_cached_tokens, step.copies) == (8, [])
    of.check_integrity()


def test_blocks_that_a_text_finds_are_neither_taken_for_it_nor_counted_as_free() -> None:
    of = scheduler(5)
    first = Request([*range(8), 1])
    of.add(first)
    counts(of)
    of.finish(first)
    longer = Request([*range(8), *[50] * 11])
    of.add(longer)
    assert counts(of) == [(0, 11)] and longer.num_cached_tokens == 8
    assert sorted(longer.block_ids) == list(range(5))
    of.finish(longer)
    of.add(Request(text(11, 9)))  # takes three of the five
    counts(of)
    again = Request([*range(8), *[60] * 5])  # the two that are free are those that it finds
    of.add(again)
    of.schedule()
    assert again.status is Status.WAITING and not again.block_ids


def test_blocks_of_a_common_beginning_are_taken_last_when_all_have_ended() -> None:
    of = scheduler(10, budget=64)
    pair = [Request([*range(12), 70]), Request([*range(12), 80])]
    for request in pair:
        of.add(request)
        counts(of)
    shared = list(pair[0].block_ids[:3])
    assert list(pair[1].block_ids[:3]) == shared and of.pool.num_free == 5
    for request in pair:
        of.finish(request)
    assert of.pool.num_free == 10
    assert of.pool.allocate(10)[-3:] == shared[::-1]


def test_a_request_of_less_priority_is_preempted_though_it_came_first() -> None:
    of = scheduler(4)
    patient, urgent = Request(text(6, 1), priority=5), Request(text(6, 2), priority=0)
    of.add(patient)
    of.add(urgent)
    while not of.num_preemptions:
        counts(of)
    assert (patient.num_preemptions, urgent.num_preemptions) == (1, 0)


def test_nothing_is_looked_up_for_who_waits_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    of, lookups = scheduler(3), list[int]()
    match = of.pool.match
    monkeypatch.setattr(of.pool, "match", lambda *given, **named: (lookups.append(1), match(*given, **named))[1])
    of.add(Request(text(9, 1)))
    assert counts(of) == [(1, 9)]
    of.add(Request(text(8, 1)))  # of which two blocks are cached and held, as they are the first one's
    assert [counts(of), counts(of)] == 2 * [[(1, 1)]]
    assert len(lookups) == 1


def test_it_needs_no_torch() -> None:
    code = "import sys, llamita.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
