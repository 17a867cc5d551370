"""Forward and backward of one batch, ours and a peer's in turn: seconds, and memory at the peak."""

from collections.abc import Mapping
from importlib import import_module
from time import perf_counter

import torch

from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape
from llamita.bench.workers import Run, in_turn, workers
from llamita.errors import UsageError

# system -> module:function that makes its model with random weights of (config, dtype)
MODELS: Mapping[str, str] = {
    "llamita": "llamita.bench.models:random",
    "transformers": "llamita.bench.peers.transformers:twin",
}


def prepare(system: str, shape_name: str, dtype: str, batch: int, length: int) -> Run:
    """A model in training mode and one step of it, without an optimizer; runs in a worker's process."""
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
    """Rows of seconds and of peak memory for each system; one turn each is not counted.

    Raises UsageError for a system that does not train.
    """
    if unable := [system for system in systems if system not in MODELS]:
        raise UsageError(f"{unable[0]} does not train here: use {', '.join(MODELS)}")
    arguments = {system: (system, shape_name, dtype, batch, length) for system in systems}
    with workers(prepare, arguments, threads=threads) as started:
        seconds = in_turn(started, repeats)
        peaks = {system: [worker.measure("peak") / 2**20] for system, worker in started.items()}
    test = f"train {batch}x{length}"
    return [
        *rows_of(seconds, test=test, shape=shape_name, format=dtype, unit="s"),
        *rows_of(peaks, test=f"{test} memory", shape=shape_name, format=dtype, unit="MiB"),
    ]
