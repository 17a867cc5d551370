"""Roofline: the machine's memory bandwidth and its speed of matrix products."""

from functools import partial

from llamita.bench import bandwidth, gemm
from llamita.bench.report import Row, spread
from llamita.bench.shapes import shape
from llamita.bench.workers import InProcess, in_turn

GIGA = 1e9


def measure(*, shape_name: str, length: int, repeats: int, threads: int, nbytes: int = bandwidth.NBYTES) -> list[Row]:
    """Measure GB/s of each kernel that reads, and GFLOP/s (int8: GOP/s) of each dtype and size of product.

    The sizes are a large square product and the products of the shape's layers over `length` tokens. It runs in this
    process, and sets its number of threads.
    """
    bandwidth.use_threads(threads)
    rows = _reading(shape_name, nbytes, repeats)
    for format in gemm.PRODUCTS:
        rows += _products(format, shape_name, length, repeats)
    return rows


def _reading(shape_name: str, nbytes: int, repeats: int) -> list[Row]:
    values = bandwidth.values_of(nbytes)
    kernels = {name: InProcess(partial(bandwidth.speed, kernel, values)) for name, kernel in bandwidth.KERNELS.items()}
    test = f"read {nbytes >> 20} MiB"
    return [_row(test, shape_name, "fp32", name, "GB/s", turns) for name, turns in in_turn(kernels, repeats).items()]


def _products(format: str, shape_name: str, length: int, repeats: int) -> list[Row]:
    sizes = dict.fromkeys(gemm.sizes(shape(shape_name), length))
    products = {"x".join(map(str, size)): InProcess(gemm.prepare([format], [size])) for size in sizes}
    unit = "GOP/s" if format == "int8" else "GFLOP/s"
    turns = in_turn(products, repeats)
    return [_row(f"product {size}", shape_name, format, "torch", unit, values) for size, values in turns.items()]


def _row(test: str, shape_name: str, format: str, system: str, unit: str, turns: list[float]) -> Row:
    scaled = [value / GIGA for value in turns]
    return Row(test=test, shape=shape_name, format=format, system=system, **spread(scaled), unit=unit)
