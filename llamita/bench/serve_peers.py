"""Serve as peers do: the same requests on each, in turns. Its processes need no engine, and none of its libraries."""

import math
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

from llamita.bench.compare import Measurement, Results, Settings, compare
from llamita.bench.systems import SYSTEMS, open_session
from llamita.bench.workers import Run
from llamita.bench.workload import COUNTS, Workload


def measure(settings: Settings, *, counts: tuple[int, ...] = COUNTS) -> Results:
    """Measure the same workloads on the peers in turns with ours: tokens written per second."""
    settings = replace(settings, systems=[name for name in settings.systems if SYSTEMS[name].serves])
    measured = Results()
    for format in settings.formats:
        with TemporaryDirectory(prefix="llamita-bench-") as folder:
            for count in counts:
                measured.add(_against(replace(settings, formats=[format], folder=Path(folder)), count))
    return measured


def _against(settings: Settings, count: int) -> Results:
    """The peers and ours with this number of requests at once."""
    test = Measurement(
        name=f"{count} at once", unit="tok/s", prepare=prepare, arguments=(count,), share=lambda *_: math.nan
    )
    found = compare(test, settings)
    found.rows = [replace(row, of_limit=None) for row in found.rows]
    return found


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, at_once: int) -> Run:
    """Prepare a workload, which the first run has the beginning of, as it does not count. Runs in a worker process."""
    session = open_session(system, shape_name, format, path, threads)
    work = Workload.of(at_once, shape_name, 0)
    turns = chain([work.beginning()], repeat(work))

    def run() -> float:
        work = next(turns)
        return work.written / session.serve_seconds(work)

    return run
