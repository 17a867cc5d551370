"""Training: forward and backward of one batch, in seconds and peak memory."""

from collections.abc import Mapping
from importlib import import_module
from time import perf_counter

import torch

from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape
from llamita.bench.workers import Run, in_turn, workers
from llamita.errors import UsageError

# system -> module:function of (config, dtype) that makes its model with random weights
MODELS: Mapping[str, str] = {
    "llamita": "llamita.bench.models:random",
    "transformers": "llamita.bench.peers.transformers:twin",
}


def prepare(system: str, shape_name: str, dtype: str, batch: int, length: int) -> Run:
    """Prepare one forward and backward, without an optimizer. Runs in a worker process."""
    config = shape(shape_name)
    module, _, function = MODELS[system].partition(":")
    model = getattr(import_module(module), function)(config, getattr(torch, dtype)).train()
    tokens = torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        start = perf_counter()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        seconds = perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return step


def measure(
    systems: list[str], *, shape_name: str, dtype: str, batch: int, length: int, repeats: int, threads: int
) -> list[Row]:
    """Measure seconds and peak memory of each system. The first turn of each is not counted.

    Raises UsageError for a system that cannot train.
    """
    if unable := [system for system in systems if system not in MODELS]:
        raise UsageError(f"bench cannot train with {unable[0]}: use one of {', '.join(MODELS)}")
    arguments = {system: (system, shape_name, dtype, batch, length) for system in systems}
    with workers(prepare, arguments, threads=threads) as started:
        seconds = in_turn(started, repeats)
        peaks = {system: [worker.measure("peak") / 2**20] for system, worker in started.items()}
    test = f"train {batch}x{length}"
    return [
        *rows_of(seconds, test=test, shape=shape_name, format=dtype, unit="s"),
        *rows_of(peaks, test=f"{test} memory", shape=shape_name, format=dtype, unit="MiB"),
    ]
