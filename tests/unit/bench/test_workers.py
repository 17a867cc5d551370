"""Processes that take turns, and what they say when they cannot."""

from collections import deque
from multiprocessing import Pipe

import pytest
import torch

from llamita.bench.peak_memory import peak_bytes
from llamita.bench.worker import serve
from llamita.bench.workers import ProcessPerTurn, Worker, in_turn, workers
from llamita.errors import LlamitaError
from tests.unit.bench.jobs import counting, dying, failing, failing_later, threads


class Noted:
    """Takes turns, and notes them in one list."""

    def __init__(self, name: str, turns: deque[str]) -> None:
        self._name, self._turns = name, turns

    def measure(self, order: str) -> float:
        self._turns.append(self._name)
        return float(len(self._turns))


@pytest.mark.parametrize("prepare", [failing, failing_later])
def test_a_worker_that_fails_says_why(prepare: object) -> None:
    started = workers(prepare, {"llamita": ("no such luck",)}, threads=1)  # type: ignore[arg-type]
    with started as systems, pytest.raises(LlamitaError, match="ValueError: no such luck"):
        systems["llamita"].measure("run")


def test_a_worker_that_dies_is_told_of() -> None:
    with workers(dying, {"llamita": ()}, threads=1) as systems, pytest.raises(LlamitaError, match="exit code 3"):
        systems["llamita"].measure("run")


@pytest.mark.parametrize("job", [("counting", ()), ("failing_later", ("no such luck",))])
def test_a_worker_whose_bench_was_killed_ends_quietly(job: tuple[str, tuple[str, ...]]) -> None:
    theirs, ours = Pipe()
    theirs.send((f"tests.unit.bench.jobs:{job[0]}", job[1]))
    theirs.send("run")
    theirs.close()
    serve(ours)


def test_a_worker_keeps_its_job_and_a_fresh_one_begins_anew() -> None:
    worker = Worker(counting, (), 1)
    try:
        assert [worker.measure("run") for _ in range(3)] == [0, 1, 2]
    finally:
        worker.stop()
    fresh = ProcessPerTurn(counting, (), 1)
    assert [fresh.measure("run") for _ in range(2)] == [0, 0]


def test_a_worker_has_the_threads_that_it_is_given() -> None:
    with workers(threads, {"llamita": ()}, threads=1) as systems:
        assert systems["llamita"].measure("run") == 1


def test_turns_alternate_and_the_first_is_not_counted() -> None:
    turns: deque[str] = deque()
    values = in_turn({"a": Noted("a", turns), "b": Noted("b", turns)}, repeats=2)
    assert "".join(turns) == "baabba"
    assert values == {"a": [3, 6], "b": [4, 5]}


def test_peak_counts_tensors_held_at_once() -> None:
    def job() -> float:
        first = torch.ones(1000)  # 4000 bytes
        second = first + 1  # 8000 held
        del first
        third = second * 2  # 8000 held again
        return float(third[0])

    assert 8000 <= peak_bytes(job) < 8200
