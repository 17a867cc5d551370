"""Writing token by token: tokens per second beside a peer, and what a step costs outside the model."""

from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from llamita.bench.peers import SYSTEMS
from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape
from llamita.bench.workers import Job, in_turn, workers

PROMPT = 16  # tokens


def prepare(system: str, shape_name: str, dtype: str, batch: int, tokens: int) -> Job:
    """Greedy writing of so many tokens, none of which ends the text; runs in a worker's process."""
    config = shape(shape_name).replace(eos_token_id=None)
    model = SYSTEMS[system](config, getattr(torch, dtype)).eval()
    call = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def run() -> float:
        start = perf_counter()
        written = model.generate(prompt(config.vocab_size, batch), **call)
        assert written.shape[1] == PROMPT + tokens
        return perf_counter() - start

    return run


def prompt(vocabulary: int, batch: int) -> Tensor:
    """The same random token ids (batch, PROMPT) at each call."""
    return torch.randint(1, vocabulary, (batch, PROMPT), generator=torch.Generator().manual_seed(0))


def measure(
    systems: list[str], *, shape_name: str, dtype: str, batch: int, tokens: int, repeats: int, threads: int
) -> list[Row]:
    """Rows of tokens per second for each system, and of ours the share of a step that is not the model's."""
    arguments = {system: (system, shape_name, dtype, batch, tokens) for system in systems}
    with workers(prepare, arguments, threads=threads) as started:
        seconds = in_turn(started, repeats)
    speeds = {system: [batch * tokens / one for one in turns] for system, turns in seconds.items()}
    shares = {"greedy": {}, "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 0}}
    overhead = [
        rows_of(
            {"llamita": [outside(shape_name, dtype, batch, tokens, flags) for _ in range(repeats)]},
            test=f"outside the model, {name}",
            shape=shape_name,
            format=dtype,
            unit="% of a step",
        )
        for name, flags in shares.items()
    ]
    speed = rows_of(speeds, test=f"tg{tokens} batch {batch}", shape=shape_name, format=dtype, unit="tok/s")
    return [*speed, *(row for rows in overhead for row in rows)]


def outside(shape_name: str, dtype: str, batch: int, tokens: int, flags: dict[str, Any]) -> float:
    """The percentage of our generate's time that passes outside the model's forward."""
    config = shape(shape_name).replace(eos_token_id=None)
    model = SYSTEMS["llamita"](config, getattr(torch, dtype)).eval()
    read = prompt(config.vocab_size, batch)
    model.generate(read, max_new_tokens=2, **flags)  # what is imported at first use is no step's
    clock = Clock(model)
    start = perf_counter()
    model.generate(read, max_new_tokens=tokens, **flags)
    total = perf_counter() - start
    return 100 * (total - clock.seconds) / total


class Clock:
    """The seconds that a module's forward has taken since the clock was put on it."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        self._started = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._started = perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started
