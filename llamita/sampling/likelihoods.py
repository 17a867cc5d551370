"""The exponentials and log-probabilities of logits, with the same bits on every CPU."""

import math
from functools import cache, lru_cache
from threading import get_ident

import torch
from torch import Tensor

from llamita.kernels.cpu.arguments import Exponentials
from llamita.kernels.cpu.runtime.program import Program, named, unsupported_reason

EXPONENTIALS = named("elementwise", "exponentials")
FEW = 1 << 15  # logits for which a second thread comes too late


def likelihoods(logits: Tensor) -> Tensor:
    """e to the power of logits (B, V) less the largest of their row: fp32 (B, V), not divided by their sum.

    On a CPU by our kernel, whose bits are those of kernels/reference.py on every processor; elsewhere torch's
    probabilities. A row without a finite largest logit gets NaN: there is nothing to draw.
    """
    most = logits.amax(-1)
    if not logits.is_cpu or logits.dtype != torch.float32 or not _has_kernels() or not bool(most.isfinite().all()):
        return logits.softmax(-1)
    logits, out = logits.contiguous(), torch.empty_like(logits, memory_format=torch.contiguous_format)
    rows, columns = logits.shape
    program, number = _program(rows, columns, get_ident())
    program.change(number, x=logits, most=most, out=out)
    program.run(1 if logits.numel() <= FEW else None)
    return out


def log_softmax(logits: Tensor) -> Tensor:
    """The log-probabilities (B, V) of logits (B, V) in fp32, with the same bits on every CPU that runs our kernels.

    Sums and differences are float64, in the order of the vocabulary, and rounded once.
    """
    if not logits.is_cpu or not _has_kernels() or not bool(logits.amax(-1).isfinite().all()):
        return logits.log_softmax(-1)
    sums = likelihoods(logits).cumsum(-1, dtype=torch.float64)[:, -1]
    logs = torch.tensor([math.log(one) for one in sums.tolist()], dtype=torch.float64, device="cpu")
    return ((logits.double() - logits.amax(-1, keepdim=True).double()) - logs[:, None]).float()


@lru_cache(maxsize=64)
def _program(rows: int, columns: int, thread: int) -> tuple[Program, int]:
    """The program for a shape, and its call. Each thread has its own, as it changes the call and then runs it."""
    program = Program()
    return program, program.add(EXPONENTIALS, Exponentials(None, None, None, columns), chunks=rows)


@cache
def _has_kernels() -> bool:
    return unsupported_reason() is None
