"""Learning-rate schedules as a table: the share of the rate as a function of the step alone."""

import math
from collections.abc import Callable, Mapping

Schedule = Callable[[float], float]  # how much of the steps after the warm-up is done, 0 to 1 -> share of the rate
DECAY = 0.6  # of wsd: the share of the steps in which the rate falls (training.md: best of those tried)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _wsd(done: float) -> float:
    return min(1.0, (1 - done) / DECAY)


def _linear(done: float) -> float:
    return 1 - done


def _constant(done: float) -> float:
    return 1.0


# wsd: warm up, stay, decay in a line to 0 (arXiv:2404.06395).
SCHEDULES: Mapping[str, Schedule] = {"wsd": _wsd, "cosine": _cosine, "linear": _linear, "constant": _constant}


def share(name: str, step: int, *, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step counted from 0; warmup: the share of the steps in which it rises."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return SCHEDULES[name]((step - rising) / max(1, steps - rising))
