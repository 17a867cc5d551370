"""Run one measurement for all formats and systems: llamita, each peer and the machine's limit take turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llamita.bench import files
from llamita.bench.report import Facts, Row, rows_of, spread
from llamita.bench.systems import OURS, SYSTEMS, System, interpreter, versions
from llamita.bench.workers import ProcessPerTurn, Run, RunFailedError, Worker, in_turn

LIMIT = "limit"  # the name of the limit among the systems that take turns
Start = type[Worker] | type[ProcessPerTurn]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit of the machine, measured in the same turns as the systems, in `unit`s of `scale`."""

    name: str
    unit: str
    scale: float
    prepare: Callable[..., Run]
    arguments: Callable[[Path | None], tuple[Any, ...]]  # made from the path of the file that llamita loads


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement. `prepare(system, shape, format, path, threads, *arguments)` makes the run of one system."""

    name: str
    unit: str
    prepare: Callable[..., Run]
    arguments: tuple[Any, ...]
    share: Callable[[str, float, float], float]  # (format, value, limit) -> the share of the limit that was reached
    limit: Limit | None = None
    start: Start = Worker
    loads: bool = False  # whether every system loads a file; if not, a system may take weights from memory


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and how often. systems: names, ours first. also_threads: llamita on other numbers of threads."""

    shape: str
    formats: Sequence[str]
    systems: Sequence[str]
    repeats: int
    threads: int
    also_threads: tuple[int, ...] = ()
    peers_python: str | None = None
    folder: Path | None = None  # where the systems' files are; None writes them for this test alone
    report: Callable[[str], None] = lambda _: None  # gets each comparison's name as it starts, its figures as it ends


@dataclass
class Results:
    """Rows, and the machine's limits: `Limit.name` -> values in `Limit.unit`."""

    rows: list[Row] = field(default_factory=list)
    limits: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # of the peers' libraries

    def add_limit(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Add values of a limit of the machine."""
        self.limits.setdefault(name, []).extend(values)
        self.units[name] = unit

    def add(self, other: "Results") -> None:
        """Add the results of another measurement."""
        self.rows += other.rows
        self.units |= other.units
        self.versions |= other.versions
        for name, values in other.limits.items():
            self.limits.setdefault(name, []).extend(values)

    def facts(self) -> Facts:
        """Median, minimum, maximum and unit of each limit."""
        return {name: {**spread(values), "unit": self.units[name]} for name, values in self.limits.items()}


def compare(test: Measurement, settings: Settings) -> Results:
    """Measure every format on every system that has it: one row each."""
    peers = [SYSTEMS[name] for name in settings.systems if name != OURS.name]
    # `versions` first: it raises for a missing library before anything is measured.
    measured = Results(versions=versions(settings.systems, settings.peers_python))
    with _files(settings) as folder:
        for format in settings.formats:
            with_format = [peer for peer in peers if format in peer.formats]
            _one_format(test, settings, format, with_format, folder, measured)
            if settings.folder is None:
                files.remove(folder)
    return measured


@contextmanager
def _files(settings: Settings) -> Iterator[Path]:
    """The folder of the systems' files."""
    if settings.folder is not None:
        yield settings.folder
        return
    with TemporaryDirectory(prefix="llamita-bench-") as folder:
        yield Path(folder)


def _one_format(
    test: Measurement, settings: Settings, format: str, peers: list[System], folder: Path, measured: Results
) -> None:
    paths = {
        system.name: files.written_file(system, settings.shape, format, folder, settings.peers_python)
        for system in (OURS, *peers)
        if test.loads or system.needs_file
    }

    def started(system: System, stack: ExitStack, threads: int = settings.threads) -> Worker | ProcessPerTurn:
        arguments = (system.name, settings.shape, format, paths.get(system.name), threads, *test.arguments)
        python = interpreter(system, settings.peers_python)
        return _stopped_at_end(stack, test.start(test.prepare, arguments, threads, python=python))

    with ExitStack() as stack:
        turns = {OURS.name: started(OURS, stack)}
        if test.limit is not None:
            arguments = test.limit.arguments(paths.get(OURS.name))
            turns[LIMIT] = _stopped_at_end(stack, Worker(test.limit.prepare, arguments, settings.threads))
        others = {f"{OURS.name}, threads: {one}": started(OURS, stack, one) for one in settings.also_threads}
        values: list[dict[str, list[float]]] = []
        for peer in peers:
            label = peer.label(format)
            settings.report(f"{test.name} {settings.shape} {format}: {OURS.name}, {label}")
            with ExitStack() as peer_stack:  # frees a peer's weights before the next peer starts
                both = {**turns, **others, label: started(peer, peer_stack)}
                try:
                    values.append(in_turn(both, settings.repeats))
                    others = {}
                except RunFailedError as error:  # a peer that ends takes no other system's figures with it
                    if error.name != label:
                        raise
                    settings.report(str(error))
        if not values:
            settings.report(f"{test.name} {settings.shape} {format}: {OURS.name}")
            values.append(in_turn({**turns, **others}, settings.repeats))
    record(test, settings, format, values, measured)


def _stopped_at_end(stack: ExitStack, process: Worker | ProcessPerTurn) -> Worker | ProcessPerTurn:
    if isinstance(process, Worker):
        stack.callback(process.stop)
    return process


def record(
    test: Measurement, settings: Settings, format: str, values: list[dict[str, list[float]]], measured: Results
) -> None:
    """Add rows: ours from the turns of all peers, a peer's from its own turns."""
    limits = [values_of.pop(LIMIT, [1.0] * settings.repeats) for values_of in values]
    if test.limit is not None:
        scaled = [one / test.limit.scale for turns in limits for one in turns]
        measured.add_limit(test.limit.name, test.limit.unit, scaled)
    ours = {OURS.name: [one for values_of in values for one in values_of[OURS.name]]}
    pooled = [one for turns in limits for one in turns]

    def rows(of: dict[str, list[float]], limits_of: list[float]) -> list[Row]:
        shares = {
            name: [test.share(format, *pair) for pair in zip(turns, limits_of, strict=True)]
            for name, turns in of.items()
        }
        return rows_of(of, test=test.name, shape=settings.shape, format=format, unit=test.unit, shares=shares)

    added = rows(ours, pooled)
    for values_of, turns in zip(values, limits, strict=True):
        added.extend(rows(values_of, turns)[1:])
    for row in added:  # at once: a run that is stopped later has said what it measured
        settings.report(f"{row.test} {row.shape} {row.format}: {row.system} {row.median:,.3f} {row.unit}")
    measured.rows.extend(added)
