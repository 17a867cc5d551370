"""Decode: tokens per second, compared with peers and with memory bandwidth."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from llamita.bench import bandwidth
from llamita.bench.compare import Limit, Measurement, Results, Settings, compare
from llamita.bench.formats import weights
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import open_session
from llamita.bench.workers import Run

MEMORY = Limit(
    name="memory read",
    unit="GB/s",
    scale=1e9,
    prepare=bandwidth.prepare,
    arguments=lambda _: (bandwidth.NBYTES,),
)


def measure(settings: Settings, *, tokens: int, depth: int) -> Results:
    """Measure the decode of `tokens` tokens after a prompt of `depth` tokens, in tokens per second, without prefill."""
    nbytes = {format: weights(shape(settings.shape), format).read for format in settings.formats}
    test = Measurement(
        name=f"tg{tokens}" if depth == 1 else f"tg{tokens} @ d{depth}",  # the names of llama-bench
        unit="tok/s",
        prepare=prepare,
        arguments=(tokens, depth),
        share=lambda format, speed, bandwidth: nbytes[format] * speed / bandwidth,
        limit=MEMORY,
    )
    return compare(test, settings)


def measure_under_load(settings: Settings, *, tokens: int, depth: int) -> Results:
    """Measure the same while another process keeps a core busy, in turns with llamita on one thread."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        measured = measure(replace(settings, also_threads=(1,)), tokens=tokens, depth=depth)
    finally:
        busy.kill()
        busy.wait()
    measured.rows = [replace(row, test=f"{row.test}, busy neighbour") for row in measured.rows]
    return measured


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, tokens: int, depth: int) -> Run:
    """Prepare a greedy decode that no token ends. Runs in a worker process."""
    session = open_session(system, shape_name, format, path, threads)
    ids = prompt(shape(shape_name).vocab_size, depth)
    return lambda: tokens / session.decode_seconds(ids, tokens)
