"""Fairness: how long short requests wait for their first token while a long prompt is read."""

import random

from llamita.bench.bandwidth import use_threads
from llamita.bench.compare import Results, Settings
from llamita.bench.models import build
from llamita.bench.ours import engine_of
from llamita.bench.report import OURS, Row, p95
from llamita.bench.shapes import shape
from llamita.engine.engine import Engine
from llamita.plans.cpu import fuse

LONG, SHORT = 2000, 32  # tokens of a prompt
REQUESTS = 10  # short ones, one after the other


def measure(settings: Settings, *, long: int = LONG) -> Results:
    """Measure the time to the first token of short requests, alone and while a prompt of `long` tokens is read.

    The prompt is as long as the model's context where that is less, and is read `settings.repeats` times. The rows have
    the 95th percentile and the ratio of the two.
    """
    use_threads(settings.threads)
    measured = Results()
    for format in settings.formats:
        settings.report(f"fairness {settings.shape} {format}")
        model, dice = fuse(build(settings.shape, format)), random.Random(0)
        words, longest = range(shape(settings.shape).vocab_size), shape(settings.shape).max_position_embeddings
        long = min(long, longest - 2)
        with engine_of(model, 1 + REQUESTS, longest=long + 2) as engine:
            first_tokens(engine, [dice.choices(words, k=SHORT)])  # compiles what is not compiled
            alone = first_tokens(engine, [dice.choices(words, k=SHORT) for _ in range(3 * REQUESTS)])
            during: list[float] = []
            for _ in range(settings.repeats):
                handle = engine.submit(dice.choices(words, k=long), max_tokens=1, temperature=0.0)
                while not handle.is_over:
                    during += first_tokens(engine, [dice.choices(words, k=SHORT)])
        values = {"alone": p95(alone), f"during {long} tokens": p95(during)}
        for name, value in values.items():
            measured.rows.append(
                Row(
                    test=f"first token p95, {name}", shape=settings.shape, format=format, system=OURS,
                    median=1000 * value, min=1000 * value, max=1000 * value, unit="ms", ratio=value / values["alone"],
                )
            )  # fmt: skip
    return measured


def first_tokens(engine: Engine, prompts: list[list[int]]) -> list[float]:
    """The seconds from the arrival of each prompt, one after the other, to its first token."""
    times: list[float] = []
    for prompt in prompts:
        handle = engine.submit(prompt, max_tokens=1, temperature=0.0)
        handle.result()
        assert handle.metrics.first_token is not None
        times.append(handle.metrics.first_token - handle.metrics.arrival)
    return times
