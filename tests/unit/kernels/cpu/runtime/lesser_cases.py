"""Kernels and their references, for a process that compiles for another processor than this machine's.

`python -m tests.unit.kernels.cpu.runtime.lesser_cases [CASE...]` prints what differs, as JSON: none of it may.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from llamita.kernels import plain_product, reference
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import elementwise, isa, rotary, simd
from llamita.kernels.cpu.arguments import Angles, Embed, Gate, Norm
from llamita.kernels.cpu.block_kernels import KERNELS
from llamita.kernels.cpu.constants import NUMBERS
from llamita.kernels.cpu.packed_layout import pack
from llamita.kernels.cpu.repack import repack
from tests.unit.kernels.cpu import test_dtype_io, test_elementwise, test_gemm, test_gemv_quantized
from tests.unit.kernels.cpu.attention_case import Case
from tests.unit.kernels.cpu.launch import call, launch, quantized
from tests.unit.kernels.cpu.test_repack import any_bytes

Pairs = Iterator[tuple[Tensor, Tensor]]  # what a kernel makes, and its reference
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def products(dtype: torch.dtype) -> Pairs:
    """Plain matrices of odd sizes, of whole tiles, and of numbers far apart."""
    for rows, columns, batch in ((13, 70, 9), (10, 530, 1), (33, 96, 14), (36, 64, 33)):
        weight, x, bias = torch.randn(rows, columns).to(dtype), torch.randn(batch, columns), torch.randn(rows)
        x = x * 10.0 ** torch.randint(-3, 4, x.shape)
        before = torch.randn(batch, rows)
        yield test_gemm.product(weight, x, bias), reference.product(x, weight, bias)
        yield test_gemm.product(weight, x, adds=before), reference.product(x, weight) + before


def quantized_products(kind: str) -> Pairs:
    """Products of one row, of few and of more than a thread takes; matrices side by side for a gate; an embedding."""
    for rows, wide, batch in ((17, 2, 1), (48, 1, 5), (33, 1, 261)):
        codes, x, bias = quantized(kind, rows, 256 * wide), torch.randn(batch, 256 * wide), torch.randn(rows)
        yield test_gemv_quantized.product(codes, kind, x, bias), reference.product_quantized(x, codes, bias)
    codes, ids, out = quantized(kind, 35, 256), torch.tensor([34, 0, 15, 16, 16]), torch.empty(5, 256)
    launch(KERNELS[f"embed_{kind}"], ids, pack(codes, kind).stream, out, 256, chunks=5)
    yield out, plain_product.rows(codes, ids)


def packed(kind: str) -> Pairs:
    """Blocks of a file of any bytes, packed."""
    raw = any_bytes(kind, 33, 2)
    yield repack(raw, kind).stream, pack(FORMATS[kind].codes(raw), kind).stream


def decoded(dtype: torch.dtype) -> Pairs:
    """Few tokens over a cache, one behind the other and in pages, with a window."""
    for case in (Case([70, 5, 0], 2, dtype=dtype), Case([66], dtype=dtype, page=16), Case([90], dtype=dtype, window=7)):
        yield case.decoded(), case.expected()


def prefilled(dtype: torch.dtype) -> Pairs:
    """Many tokens over a cache: a block of queries and one, or one short."""
    for case in (Case([63, 5], 33, dtype=dtype, width=32), Case([3], 15, dtype=dtype, width=80, page=4)):
        yield case.prefilled(), case.expected()


def between() -> Pairs:
    """Norm, gate, angles, embedding and what is rounded."""
    x, weight, out = torch.randn(3, 1, 100) * 5, torch.randn(100).half(), torch.empty(3, 1, 100)
    call(elementwise.norm, Norm(x, weight, out, None, None, 100, 1e-5, None, NUMBERS[FP16]), chunks=3)
    yield out, reference.norm(x, weight, 1e-5)
    first, second, gated = torch.randn(1000) * 20, torch.randn(1000), torch.empty(1000)
    halves = torch.empty(1000, dtype=BF16)
    call(elementwise.gate, Gate(first, second, gated, halves, None, 64, 1000), chunks=16)
    yield gated, reference.silu_times(first, second)
    yield halves, gated.bfloat16()
    positions, frequencies = torch.tensor([0, 1, 77, 131_071]), 10_000 ** -(torch.arange(35) / 35)
    turned = torch.empty(2, 4, 35)
    call(rotary.angles, Angles(positions, frequencies, turned[0], turned[1], 35, 1.25), chunks=4)
    yield turned, torch.stack(reference.angles(positions, frequencies, 1.25))
    table, ids, rows = torch.randn(11, 37).half(), torch.tensor([10, 0, 3, 3]), torch.empty(4, 37)
    call(elementwise.embed_fp16, Embed(ids, table, rows, 37), chunks=4)
    yield rows, table[ids].float()
    for columns, chunk in ((96, 64), (2080, 1120)):
        test_elementwise.test_rounded_rows(columns, chunk)


def numbers() -> Pairs:
    """Every size of number, read and written."""
    for dtype in (FP32, BF16, FP16):
        test_dtype_io.test_every_size_of_number_is_rounded_as_torch_rounds(dtype)
    yield from ()


CASES: dict[str, Callable[[], Pairs]] = {
    "between": between,
    "numbers": numbers,
    **{f"product {name}": partial(products, dtype) for name, dtype in (("fp32", FP32), ("bf16", BF16), ("fp16", FP16))},
    **{f"product {kind}": partial(quantized_products, kind) for kind in FORMATS},
    **{f"pack {kind}": partial(packed, kind) for kind in FORMATS},
    **{f"decode {name}": partial(decoded, dtype) for name, dtype in (("fp32", FP32), ("bf16", BF16), ("fp16", FP16))},
    **{f"prefill {name}": partial(prefilled, dtype) for name, dtype in (("fp32", FP32), ("bf16", BF16))},
}


def differences(name: str) -> list[int]:
    """The numbers of a case's pairs that are not equal bit for bit."""
    torch.manual_seed(0)
    return [i for i, (made, expected) in enumerate(CASES[name]()) if not torch.equal(made, expected)]


def main(*names: str) -> None:
    """Print what differs in these cases, or in all; no garbage is sought, as a compiler leaves little of it."""
    gc.disable()
    torch.set_num_threads(1)
    assert simd.target() == isa.target()
    print(json.dumps({name: found for name in names or CASES if (found := differences(name))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
