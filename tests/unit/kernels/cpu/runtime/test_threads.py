"""How many threads a program runs on, told from how long its runs took."""

from collections.abc import Callable

import pytest
import torch

from llamita.kernels.cpu.runtime.program import Program
from llamita.kernels.cpu.runtime.threads import LONGEST, ROUND, Pace
from tests.unit.kernels.cpu.runtime.test_program import AddUp, add_up


def run(pace: Pace, seconds: Callable[[int, int], float], runs: int) -> list[int]:
    """The threads of so many runs, each as long as `seconds(threads, number)` says."""
    threads = []
    for number in range(runs):
        threads.append(pace.threads)
        pace.note(seconds(pace.threads, number))
    return threads


def idle(threads: int, number: int) -> float:
    """Of a machine that nobody else uses."""
    return 8.0 / threads + 0.01 * (number % 3)


def busy(free: int) -> Callable[[int, int], float]:
    """Of a machine with so many cores that nobody else uses: every fourth run on more waits for its turn."""
    return lambda threads, number: idle(threads, number) if threads <= free or number % 4 else 60.0


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_an_idle_machine_has_all_its_threads_used(most: int) -> None:
    assert set(run(Pace(most), idle, 3000)) == {most}


@pytest.mark.parametrize(("most", "free"), [(2, 1), (3, 2), (3, 1), (8, 7), (8, 4), (8, 1)])
def test_a_busy_machine_has_as_many_used_as_are_free(most: int, free: int) -> None:
    threads = run(Pace(most), busy(free), 10 * ROUND * LONGEST)
    assert threads[: ROUND + 1] == [most] * ROUND + [most - 1]
    assert threads[30 * ROUND :].count(free) > 0.9 * len(threads[30 * ROUND :])


def test_threads_come_back_when_the_machine_is_idle_again() -> None:
    pace = Pace(2)
    assert 1 in run(pace, busy(1), 50 * ROUND)
    assert run(pace, idle, 2 * LONGEST * ROUND)[-ROUND * 2 :] == [2] * 2 * ROUND


def test_fewer_threads_that_are_no_faster_are_seldom_tried() -> None:
    threads = run(Pace(2), lambda threads, number: 1.0 + (number % 4) + 2 * (threads == 1), 4000)
    assert 0 < threads.count(1) < 0.05 * 4000


def test_programs_learn_and_other_numbers_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    program, x, out = Program(), torch.ones(1), torch.zeros(1)
    program.add(add_up, AddUp(x, out, 1))
    for most in (2, 2, 1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda most=most: most)
        program.run()
        assert program._pace.most == most and len(program._pace._seconds) == {2: 1, 1: 0, 3: 1}[most] + (out == 2)
    program.run(2)
    assert program._pace.most == 3 and out == 5
