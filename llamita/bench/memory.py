"""Memory: what a process holds at most from its start until it has loaded a model and written with it."""

from pathlib import Path

from llamita.bench.compare import Measurement, Results, Settings, compare
from llamita.bench.formats import cache_bytes, weights
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import open_session
from llamita.bench.workers import ProcessPerTurn, Run

MIB = 2**20


def measure(settings: Settings, *, tokens: int, depth: int) -> Results:
    """Rows of MiB for each format and system, each turn in a new process; the limit is weights and cache alone."""
    config = shape(settings.shape)
    cache = cache_bytes(config, depth + tokens)
    needed = {format: (weights(config, format).held + cache) / MIB for format in settings.formats}
    test = Measurement(
        name=f"memory of tg{tokens}" if depth == 1 else f"memory of tg{tokens} @ d{depth}",
        unit="MiB",
        prepare=prepare,
        arguments=(tokens, depth),
        share=lambda format, held, _: needed[format] / held,
        start=ProcessPerTurn,
        loads=True,
    )
    return compare(test, settings)


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, tokens: int, depth: int) -> Run:
    """Load the model's file and write; says the most memory that the process has held, mapped files included."""

    def run() -> float:
        session = open_session(system, shape_name, format, path, threads)
        session.write(prompt(shape(shape_name).vocab_size, depth), tokens)
        return most_held() / MIB

    return run


def most_held() -> float:
    """The bytes of this process's largest resident memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return 1024.0 * int(line.split()[1])
