"""The next tokens of rows that each have a sampler of their own, so that rows join and leave at no cost."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.sampling.sampler import Sampler


def sample(samplers: Sequence[Sampler], logits: Tensor) -> list[int | Exception]:
    """The next token of each row of logits (B, V) in fp32, by the row's sampler (of one row); must equal `alone`.

    A row whose sampler raises gets the exception, and the others their tokens. Greedy rows that no setting, constraint
    or observer looks at are taken together.
    """
    plain = [row for row, sampler in enumerate(samplers) if sampler.is_plain]
    tokens: list[int | Exception] = [0] * len(samplers)
    if plain:
        rows = logits if len(plain) == len(samplers) else logits[torch.tensor(plain, device=logits.device)]
        for row, token in zip(plain, rows.argmax(-1).tolist(), strict=True):
            tokens[row] = token
    for row, sampler in enumerate(samplers):
        if not sampler.is_plain:
            try:
                tokens[row] = alone(sampler, logits[row : row + 1])
            except Exception as error:
                tokens[row] = error
    return tokens


def alone(sampler: Sampler, logits: Tensor) -> int:
    """The next token of one row of logits (1, V): the reference of `sample`."""
    step = sampler(logits)
    sampler.append(step)
    return int(step)
