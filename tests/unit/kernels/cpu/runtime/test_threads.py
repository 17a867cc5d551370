"""How many threads a program runs on, decided from how long its runs took. The clock is the test's own."""

from collections.abc import Callable
from itertools import count
from random import Random

import pytest
import torch

from llamita.kernels.cpu.runtime.program import Program
from llamita.kernels.cpu.runtime.threads import Pace
from tests.unit.kernels.cpu.runtime.test_program import AddUp, add_up

Seconds = Callable[[int, int], float]  # (number of threads, number of the run) -> how long it takes
SHORT, LONG = 0.0002, 0.3  # seconds of one thread: a tiny model, a large one


def run(pace: Pace, seconds: Seconds, total: float) -> dict[int, int]:
    """Make runs for so many seconds: number of threads -> how many runs it made."""
    runs: dict[int, int] = {}
    for number in count():
        taken = seconds(pace.threads, number)
        runs[pace.threads] = runs.get(pace.threads, 0) + 1
        pace.note(taken)
        total -= taken
        if total <= 0:
            break
    return runs


def idle(work: float) -> Seconds:
    """On a machine that nobody else uses."""
    return lambda threads, number: work / threads * (1 + 0.01 * (number % 3))


def uneven(work: float, free: int) -> Seconds:
    """On so many free cores: every fourth run on more threads waits for a turn of the scheduler."""
    alone = idle(work)
    return lambda threads, number: alone(threads, number) + 0.006 * (threads > free and number % 4 == 0)


def even(work: float, free: int) -> Seconds:
    """On so many free cores: every run on more threads is slowed alike, by each that has no core."""
    alone = idle(work)
    return lambda threads, number: alone(threads, number) + 0.004 * max(0, threads - free)


@pytest.mark.parametrize("work", [SHORT, LONG])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_trials_cost_less_than_a_hundredth_on_an_idle_machine(most: int, work: float) -> None:
    seconds = 20 * (1 + 100 * work)
    runs = run(Pace(most), idle(work), seconds)
    assert sum(runs.values()) > 0.99 * seconds * most / (1.01 * work)
    assert len(runs) > 1  # what costs so little is tried


def test_a_few_long_prompts_are_no_trial() -> None:
    pace = Pace(2)
    assert run(pace, idle(3.0), 60.0).keys() == {2}  # as of 512 tokens of a model of 1b
    assert run(pace, idle(3.0), 600.0)[1] <= 3


def test_one_thread_has_no_other_to_try() -> None:
    assert run(Pace(1), idle(SHORT), 1.0).keys() == {1}


@pytest.mark.parametrize("slowed", [uneven, even])
@pytest.mark.parametrize(("most", "free"), [(2, 1), (3, 2), (3, 1), (8, 7), (8, 4), (8, 1)])
def test_a_busy_machine_has_as_many_used_as_are_free(
    most: int, free: int, slowed: Callable[[float, int], Seconds]
) -> None:
    pace, seconds = Pace(most), slowed(SHORT, free)
    run(pace, seconds, 1.0)
    runs = run(pace, seconds, 20.0)
    assert sum(runs.values()) > 0.98 * 20.0 * free / (1.01 * SHORT)


@pytest.mark.parametrize("slowed", [uneven, even])
def test_a_process_that_starts_and_ends_is_noticed(slowed: Callable[[float, int], Seconds]) -> None:
    pace = Pace(2)
    for _ in range(3):
        run(pace, idle(SHORT), 10.0)
        assert run(pace, idle(SHORT), 10.0)[2] * SHORT / 2 > 9.8
        run(pace, slowed(SHORT, 1), 1.0)
        assert run(pace, slowed(SHORT, 1), 10.0)[1] * SHORT > 9.7


def test_fewer_threads_that_are_no_faster_are_seldom_tried() -> None:
    runs = run(Pace(2), lambda threads, number: SHORT * (1 + number % 4 + 2 * (threads == 1)), 20.0)
    assert 0 < runs[1] < 0.02 * runs[2]


def test_fewer_threads_are_found_where_runs_are_held_up_by_chance() -> None:
    """One thread is faster, though every fourth run on it takes longer than the mean on two."""
    found = 0
    for seed in range(50):
        chance, pace = Random(seed), Pace(2)
        run(pace, lambda threads, _: 0.015 if threads == 2 else chance.choice([0.008] * 3 + [0.020]), 1.0)  # noqa: B023
        found += pace._chosen == 1
    assert found > 40


def test_a_run_that_was_held_up_by_chance_does_not_end_all_trials() -> None:
    """A trial that meets a stall of seconds is repeated before long."""
    pace = Pace(2)
    run(pace, even(SHORT, 1), 1.0)
    assert pace.threads == 1
    stalled = iter([5.0])
    run(pace, lambda threads, number: next(stalled, SHORT) if threads == 2 else SHORT, 15.0)
    assert run(pace, idle(SHORT), 10.0)[2] > 0.98 * 10.0 * 2 / (1.01 * SHORT)


def test_programs_learn_and_other_numbers_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x, out = Program(), torch.ones(1), torch.zeros(1)
    program.add(add_up, AddUp(x, out, 1))
    for most in (2, 2, 1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda most=most: most)
        program.run()
        assert program._pace.most == most and program._pace._watch.runs == {2: 1, 1: 0, 3: 1}[most] + (out == 2)
    program.run(2)
    assert program._pace.most == 3 and out == 5
