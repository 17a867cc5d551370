"""Overhead: the time of generation outside the model, such as sampling and stop criteria."""

from time import perf_counter
from typing import Any

import torch
from torch import nn

from llamita.bench.models import random
from llamita.bench.prompts import prompt
from llamita.bench.report import Row, rows_of
from llamita.bench.shapes import shape

PROMPT = 16  # tokens
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 0},
}


def measure(*, shape_name: str, dtype: str, batch: int, tokens: int, repeats: int) -> list[Row]:
    """Measure the share of our generate's time outside the model, greedy and sampled."""
    return [
        row
        for name, flags in MODES.items()
        for row in rows_of(
            {"llamita": [percent_outside(shape_name, dtype, batch, tokens, flags) for _ in range(repeats)]},
            test=f"outside the model, {name}",
            shape=shape_name,
            format=dtype,
            unit="% of a step",
        )
    ]


def percent_outside(shape_name: str, dtype: str, batch: int, tokens: int, flags: dict[str, Any]) -> float:
    """The percentage of our generate's time that is spent outside the model's forward."""
    config = shape(shape_name).replace(eos_token_id=None)
    model = random(config, getattr(torch, dtype)).eval()
    ids = torch.tensor([prompt(config.vocab_size, PROMPT, row) for row in range(batch)])
    model.generate(ids, max_new_tokens=2, **flags)  # do not time the imports of the first use
    timer = ForwardTimer(model)
    start = perf_counter()
    model.generate(ids, max_new_tokens=tokens, **flags)
    total = perf_counter() - start
    return 100 * (total - timer.seconds) / total


class ForwardTimer:
    """Adds up the seconds of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        self._started = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._started = perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started
