"""GEMM: the speed of matrix products in the shapes of a prefill."""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from llamita.config import LlamaConfig

Size = tuple[int, int, int]  # rows, columns, inner dimension
SQUARE: Size = (2048, 2048, 2048)
MIN_SECONDS = 0.1  # of a measurement


def sizes(config: LlamaConfig, tokens: int) -> list[Size]:
    """The sizes of one large square product, and of a layer's products over `tokens` tokens."""
    wide, narrow = config.intermediate_size, config.hidden_size
    return [SQUARE, (tokens, narrow, narrow), (tokens, wide, narrow), (tokens, narrow, wide)]


def _floats(dtype: torch.dtype) -> Callable[[Size], Callable[[], Tensor]]:
    def product(size: Size) -> Callable[[], Tensor]:
        rows, columns, inner = size
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        return lambda: torch.mm(a, b.t())

    return product


def _bytes(size: Size) -> Callable[[], Tensor]:
    rows, columns, inner = size
    a, b = (torch.randint(-127, 128, (many, inner), dtype=torch.int8) for many in (rows, columns))
    return lambda: torch._int_mm(a, b.t())  # pyright: ignore[reportPrivateImportUsage]


PRODUCTS: dict[str, Callable[[Size], Callable[[], Tensor]]] = {
    "fp32": _floats(torch.float32),
    "bf16": _floats(torch.bfloat16),
    "int8": _bytes,
}


def prepare(formats: Sequence[str], measured: Sequence[Size]) -> Callable[[], float]:
    """Prepare a run that multiplies in each format and size. It returns the fastest, in operations per second."""
    products = [(2.0 * math.prod(size), PRODUCTS[format](size)) for format in formats for size in measured]

    def run() -> float:
        return max(_speed(operations, product) for operations, product in products)

    return run


def _speed(operations: float, product: Callable[[], Tensor]) -> float:
    count, start = 0, perf_counter()
    while (seconds := perf_counter() - start) < MIN_SECONDS:
        product()
        count += 1
    return operations * count / seconds
