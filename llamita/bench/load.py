"""Loading: seconds from a file in the page cache to the first token, compared with peers and with reading the file."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime, perf_counter

from llamita.bench.compare import Limit, Measurement, Results, Settings, compare
from llamita.bench.files import files_of
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import SYSTEMS, open_session
from llamita.bench.workers import ProcessPerTurn, Run

CHUNK = 2**23  # bytes that a thread reads at a time


def measure(settings: Settings) -> Results:
    """Measure seconds to the first token: from the call that loads, and from the start of a new process."""
    limit = Limit(
        name="reading the file",
        unit="s",
        scale=1.0,
        prepare=prepare_limit,
        arguments=lambda path: (path, settings.threads),
    )
    measured = Results()
    for name, prepare in TESTS.items():
        test = Measurement(
            name=name,
            unit="s",
            prepare=prepare,
            arguments=(),
            share=lambda _, seconds, needed: needed / seconds,
            limit=limit,
            start=ProcessPerTurn,
            loads=True,
        )
        measured.add(compare(test, settings))
    return measured


def prepare_call(system: str, shape_name: str, format: str, path: Path | None, threads: int) -> Run:
    """Load and process one token, timed from the call; libraries are imported before."""
    import_module(SYSTEMS[system].module)
    return lambda: _seconds(lambda: _first_token(system, shape_name, format, path, threads))


def prepare_start(system: str, shape_name: str, format: str, path: Path | None, threads: int) -> Run:
    """Load and process one token, timed from the start of the process, to a hundredth of a second."""

    def run() -> float:
        _first_token(system, shape_name, format, path, threads)
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # in ticks since boot
        return clock_gettime(CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")

    return run


TESTS: dict[str, Callable[..., Run]] = {
    "load to first token": prepare_call,
    "start to first token": prepare_start,
}


def prepare_limit(path: Path, threads: int) -> Run:
    """Prepare a run that reads all bytes of the file and returns the seconds."""
    files = [(file, file.stat().st_size) for file in files_of(path)]
    parts = [
        (file, one * size // threads, (one + 1) * size // threads) for file, size in files for one in range(threads)
    ]

    def run() -> float:
        with ThreadPoolExecutor(threads) as pool:
            return _seconds(lambda: list(pool.map(_read, parts)))

    return run


def _read(part: tuple[Path, int, int]) -> None:
    """Read the bytes [first, last) of a file into one buffer, again and again."""
    path, first, last = part
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        file.seek(first)
        while first < last and (count := file.readinto(buffer[: last - first])):
            first += count


def _first_token(system: str, shape_name: str, format: str, path: Path | None, threads: int) -> None:
    open_session(system, shape_name, format, path, threads).prefill(prompt(shape(shape_name).vocab_size, 1))


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
