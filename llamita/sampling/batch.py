"""The next tokens of rows that each have a sampler of their own, so that rows join and leave at no cost."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llamita.sampling.finite import not_finite
from llamita.sampling.history import History
from llamita.sampling.params import SAMPLING, SamplingParams
from llamita.sampling.sampler import LogitsProcessorList, Sampler, draw

NO_HISTORY = History(torch.zeros(1, 0, dtype=torch.int64, device="cpu"), 0)  # filters read logits alone


def sample(samplers: Sequence[Sampler], logits: Tensor) -> list[int | Exception]:
    """The next token of each row of logits (B, V) in fp32, by the row's sampler (of one row); must equal `alone`.

    A row whose sampler raises gets the exception, and the others their tokens; a row of damaged logits NotFiniteError.
    Rows of the same filters, of which no setting reads the text and nothing observes the choice, are taken together.
    """
    best, is_finite = _best(logits)
    tokens: list[int | Exception] = [*best]
    groups: dict[tuple[float, ...] | int, list[int]] = {}
    for row, sampler in enumerate(samplers):
        key = sampler.filters
        if not is_finite[row]:
            tokens[row] = not_finite()
        elif key != ():  # a greedy row has its token
            groups.setdefault(row if key is None else key, []).append(row)
    for key, rows in groups.items():
        some = logits if len(rows) == len(samplers) else logits[torch.tensor(rows, device=logits.device)]
        try:
            own = [samplers[row] for row in rows]
            found = [alone(own[0], some)] if isinstance(key, int) else _together(key, own, some)
        except Exception as error:
            found = [error] * len(rows)
        for row, token in zip(rows, found, strict=True):
            tokens[row] = token
    return tokens


def alone(sampler: Sampler, logits: Tensor) -> int:
    """The next token of one row of logits (1, V): the reference of `sample`."""
    step = sampler(logits)
    sampler.append(step)
    return int(step)


def _best(logits: Tensor) -> tuple[list[int], list[bool]]:
    """The most probable token of each row, and whether its logit is finite, which a NaN or an infinity would not be."""
    if logits.is_cpu:  # NumPy finds them in one thread and in less time
        numbers = logits.numpy()
        best = numbers.argmax(-1).tolist()
        return best, [math.isfinite(numbers.item(place)) for place in enumerate(best)]
    values, tokens = logits.max(-1)
    return tokens.tolist(), values.isfinite().tolist()


def _together(key: tuple[float, ...], samplers: Sequence[Sampler], logits: Tensor) -> list[int]:
    """The next tokens of rows with the same filters."""
    scores = _filters(key)(logits, NO_HISTORY)
    return draw(scores, [sampler.generators[0] for sampler in samplers if sampler.generators]).tolist()


@lru_cache(maxsize=256)
def _filters(key: tuple[float, ...]) -> LogitsProcessorList:
    """The filters of these settings, for any number of rows."""
    settings: dict[str, Any] = dict(zip(SAMPLING, key, strict=True))
    return LogitsProcessorList(SamplingParams(do_sample=True, **settings), rows=2)
