"""Memory: the peak of a process that loads a model and generates with it."""

from pathlib import Path

from llamita.bench.compare import Measurement, Results, Settings, compare
from llamita.bench.formats import cache_bytes, weights
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import open_session
from llamita.bench.workers import ProcessPerTurn, Run

MIB = 2**20


def measure(settings: Settings, *, tokens: int, depth: int) -> Results:
    """Measure the peak in MiB of each format and system, in a new process per turn. Limit: weights and cache."""
    config = shape(settings.shape)
    cache = cache_bytes(config, depth + tokens)
    needed = {format: (weights(config, format).held + cache) / MIB for format in settings.formats}
    test = Measurement(
        name=f"memory of tg{tokens}" if depth == 1 else f"memory of tg{tokens} @ d{depth}",
        unit="MiB",
        prepare=prepare,
        arguments=(tokens, depth),
        share=lambda format, peak, _: needed[format] / peak,
        start=ProcessPerTurn,
        loads=True,
    )
    return compare(test, settings)


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, tokens: int, depth: int) -> Run:
    """Prepare a run that loads the file, generates, and returns the peak resident memory, mapped files included."""

    def run() -> float:
        session = open_session(system, shape_name, format, path, threads)
        session.decode_seconds(prompt(shape(shape_name).vocab_size, depth), tokens)
        return peak_resident() / MIB

    return run


def peak_resident() -> float:
    """The peak of this process's resident memory so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return 1024.0 * int(line.split()[1])
