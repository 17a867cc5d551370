"""The limits of a GPU, and each kernel against them and against torch."""

from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_page import DEVICE, Bench, timed
from llamita.kernels.cuda import operations, reference
from llamita.kernels.cuda.planes import Planes, pack
from llamita.kernels.quantized_blocks import QuantizedBlocks

# bits, zero, columns a scale, columns a sub-scale, whether there is a minimum
FORMATS = {
    "q8_0": (8, 128, 32, 0, False),
    "q4_0": (4, 8, 32, 0, False),
    "q4_k": (4, 0, 256, 32, True),
    "q6_k": (6, 32, 256, 16, False),
}
MATRICES = {"qkv": (3072, 2048), "gate_up": (16384, 2048), "down": (2048, 8192), "head": (128256, 2048)}  # of 1b
FLUSH = 2**28  # bytes that successive calls read in all, so that none finds its weights in the L2 cache


def measure_limits(bench: Bench) -> None:
    """The memory's speed, reading and copying, and that of bf16 products."""
    with bench.part("limits", 10):
        source = torch.ones(2**30, dtype=torch.bfloat16, device=DEVICE)
        target = torch.empty_like(source)
        reading = [source.nbytes / t / 1e9 for t in timed([lambda: source.view(torch.float32).sum()] * 3)]
        copying = [2 * source.nbytes / t / 1e9 for t in timed([lambda: target.copy_(source)] * 3)]
        bench.bandwidth = 1e9 * max(*reading, *copying)
        bench.add("memory, reading", "2 GiB", "", "torch", reading, "GB/s")
        bench.add("memory, copying", "2 GiB", "", "torch", copying, "GB/s")
        a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
        rates = [2 * 8192**3 / t / 1e12 for t in timed([lambda: a @ b] * 5)]
        bench.products = 1e12 * max(rates)
        bench.add("product", "8192 x 8192 x 8192", "bf16", "torch", rates, "TFLOP/s")


def random_planes(form: str, rows: int, columns: int) -> Planes:
    """A quantized matrix of random codes whose weights are about as large as a model's, 0.02."""
    bits, zero, block, span, has_minimum = FORMATS[form]
    size = 0.02 / 2 ** (bits - 2) / (32 if span else 1)

    def whole(value: float) -> Tensor:
        return torch.full((rows, columns // block), value, dtype=torch.float16, device=DEVICE)

    def fine(dtype: torch.dtype) -> Tensor | None:
        return torch.full((rows, columns // span), 32, dtype=dtype, device=DEVICE) if span else None

    codes = QuantizedBlocks(
        torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, device=DEVICE),
        bits=bits,
        zero=zero,
        scale=whole(size),
        minimum=whole(size * 2 ** (bits - 1)) if has_minimum else None,
        sub_scale=fine(torch.int8 if span == 16 else torch.uint8),
        sub_minimum=fine(torch.uint8) if has_minimum else None,
    )
    return pack(codes)


def copied(planes: Planes) -> Planes:
    """The same matrix in memory of its own."""
    parts = (None if part is None else part.clone() for part in planes.tensors)
    return Planes(*parts, bits=planes.bits, zero=planes.zero)  # type: ignore[arg-type]


def measure_matrices(bench: Bench) -> None:
    """A matrix times one and four rows, for the matrices of the 1b shape."""
    for name, (rows, columns) in MATRICES.items():
        for tokens in (1, 4):
            with bench.part(f"{name} x {tokens}", 8) as has_time:
                if has_time:
                    x = torch.randn(tokens, columns, device=DEVICE, dtype=torch.bfloat16)
                    measure_matrix(bench, f"{name} x {tokens}", rows, columns, x)


def measure_matrix(bench: Bench, test: str, rows: int, columns: int, x: Tensor) -> None:
    """One matrix in every format, ours and torch's."""
    shape, limit = f"{rows} x {columns}", bench.bandwidth / 1e9
    count = max(1, min(16, FLUSH // (rows * columns * 2)))
    weights = [torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    nbytes = weights[0].nbytes

    def rates(calls: Sequence[Callable[[], object]], size: int) -> list[float]:
        return [size / t / 1e9 for t in timed(calls)]

    ours = rates([lambda w=w: operations.few_rows(x, w) for w in weights], nbytes)
    bench.add(test, shape, "bf16", "llamita", ours, "GB/s", limit=limit)
    theirs = rates([lambda w=w: F.linear(x, w) for w in weights], nbytes)
    bench.add(test, shape, "bf16", "torch", theirs, "GB/s", limit=limit, ours=median(ours))
    del weights
    for form in FORMATS:
        planes = random_planes(form, rows, columns)
        copies = [planes, *(copied(planes) for _ in range(min(64, FLUSH // planes.nbytes) - 1))]
        calls = [lambda p=p: operations.few_rows_blocks(x, *p.tensors, None, p.bits, p.zero) for p in copies]
        bench.add(test, shape, form, "llamita", rates(calls, planes.nbytes), "GB/s", limit=limit)


def measure_small(bench: Bench) -> None:
    """Norm, gate and rotation of one token and of 2048, against torch's operations."""
    with bench.part("small kernels", 15) as has_time:
        if not has_time:
            return
        for tokens in (1, 2048):
            for name, call, plain in small_kernels(tokens):
                ours = [1e6 * t for t in timed([call] * 20)]
                bench.add(name, f"{tokens} tokens", "bf16", "llamita", ours, "us")
                theirs = [1e6 * t for t in timed([plain] * 20)]
                bench.add(name, f"{tokens} tokens", "bf16", "torch", theirs, "us", ours=median(ours))


def small_kernels(tokens: int) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Name, ours and torch's, of the 1b shape."""
    x, delta = torch.randn(2, 1, tokens, 2048, device=DEVICE, dtype=torch.bfloat16)
    gate_up = torch.randn(1, tokens, 16384, device=DEVICE, dtype=torch.bfloat16)
    qkv = torch.randn(1, tokens, 48, 64, device=DEVICE, dtype=torch.bfloat16)
    cos, sin = torch.randn(2, 1, tokens, 1, 64, device=DEVICE, dtype=torch.bfloat16)
    rooms = torch.zeros(2, 1, 8, 4096, 64, device=DEVICE, dtype=torch.bfloat16)
    start, weight = torch.tensor(100, device=DEVICE), torch.ones(2048, device=DEVICE, dtype=torch.bfloat16)
    (gate, up), (q, k, v), slots = gate_up.chunk(2, -1), qkv.split((32, 8, 8), 2), torch.arange(tokens, device=DEVICE)
    rotated = (q, k, v, cos, sin, start, rooms[0], rooms[1])

    def rotate_by_torch() -> None:
        reference.turned(q, cos, sin)
        rooms[0].index_copy_(2, start + slots, reference.turned(k, cos, sin).transpose(1, 2))
        rooms[1].index_copy_(2, start + slots, v.transpose(1, 2))

    return [
        ("rms norm", lambda: operations.rms_norm(x, weight, 1e-5), lambda: reference.rms_norm(x, weight, 1e-5)),
        (
            "add, rms norm",
            lambda: operations.add_rms_norm(x, delta, weight, 1e-5),
            lambda: reference.add_rms_norm(x, delta, weight, 1e-5),
        ),
        ("silu gate", lambda: operations.silu_gate(gate, up), lambda: reference.silu_gate(gate, up)),
        ("rotary and cache", lambda: operations.rotate_and_store(*rotated), rotate_by_torch),
    ]
