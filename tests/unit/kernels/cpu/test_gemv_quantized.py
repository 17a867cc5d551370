"""Packed matrices times activations in bytes, held to the reference over the same codes."""

import pytest
import torch
from torch import Tensor

from llamita.kernels import plain_product, reference
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.block_kernels import FAMILIES, KERNELS
from llamita.kernels.cpu.linear import QUANTIZED, add_quantized, add_round, linear
from llamita.kernels.cpu.packed_layout import pack, rows, unpack
from llamita.kernels.cpu.runtime.program import Program
from llamita.kernels.quantized_blocks import QuantizedBlocks
from tests.unit.kernels.cpu.launch import guarded, launch, quantized

SIZES = [(1, 1, 1), (16, 1, 2), (17, 2, 3), (31, 1, 4), (48, 2, 5), (35, 3, 9), (20, 1, 17)]  # rows, 256s of columns, B
PARTS = ("codes", "scale", "minimum", "sub_scale", "sub_minimum", "values")


def product(
    codes: QuantizedBlocks, kind: str, x: Tensor, bias: Tensor | None = None, before: Tensor | None = None
) -> Tensor:
    """What the kernel makes of x (B, K), with room behind it that it may not touch."""
    packed = pack(codes, kind)
    out, behind = guarded(len(x), packed.rows)
    if before is not None:
        out.copy_(before)
    q8_blocks, program = torch.zeros(x.numel() // 32 * 48, dtype=torch.uint8), Program()
    add_round(program, x, q8_blocks=q8_blocks)
    add_quantized(program, packed, q8_blocks, out, bias, len(x), adds=before is not None)
    program.run()
    assert bool((behind == 9).all())
    return out


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("lines", "wide", "batch"), SIZES)
def test_any_size(kind: str, lines: int, wide: int, batch: int) -> None:
    codes, x = quantized(kind, lines, 256 * wide), torch.randn(batch, 256 * wide)
    assert torch.equal(product(codes, kind, x), reference.product_quantized(x, codes))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "iq4_nl", "mxfp4"])
@pytest.mark.parametrize("columns", [32, 96, 160])
def test_formats_of_32_columns_take_any_multiple(kind: str, columns: int) -> None:
    codes, x = quantized(kind, 19, columns), torch.randn(3, columns)
    assert torch.equal(product(codes, kind, x), reference.product_quantized(x, codes))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bias_is_added_and_so_is_what_was_there(kind: str) -> None:
    codes, x, bias, before = quantized(kind, 37, 256), torch.randn(5, 256), torch.randn(37), torch.randn(5, 37)
    expected = reference.product_quantized(x, codes, bias)
    assert torch.equal(product(codes, kind, x, bias), expected)
    assert torch.equal(product(codes, kind, x, bias, before), expected + before)


@pytest.mark.parametrize("kind", FORMATS)
def test_sums_inside_a_block_are_exact(kind: str) -> None:
    """Any codes at all against activations that are bytes already: all products at their largest, of either sign."""
    codes = quantized(kind, 16, 256)
    codes.codes[:] = torch.where(torch.rand(16, 256) < 0.5, (1 << codes.bits) - 1, 0)
    x = torch.where(torch.rand(20, 256) < 0.9, 127.0, -127.0)
    assert torch.equal(product(codes, kind, x), reference.product_quantized(x, codes))
    one = torch.zeros(1, 256)
    one[0, 0] = 127.0  # a single product is exact
    weights = codes.dequantize()[:, 0] * 127
    torch.testing.assert_close(product(codes, kind, one)[0], weights, rtol=3e-7, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
def test_extremes_stay_finite(kind: str) -> None:
    small, large = quantized(kind, 16, 256, scale=1e-6), quantized(kind, 16, 256, scale=1e4)
    zero, x = torch.zeros(1, 256), torch.randn(1, 256)
    for codes in (small, large):
        assert bool((product(codes, kind, zero) == 0).all())
        for scale in (1e-20, 1e20):
            out, expected = product(codes, kind, x * scale), reference.product_quantized(x * scale, codes)
            assert bool(out.isfinite().all())
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_of_x_beyond_a_chunk(kind: str) -> None:
    """More rows than a thread takes at once, as a prompt has them."""
    codes, x = quantized(kind, 33, 256), torch.randn(131, 256)
    assert torch.equal(product(codes, kind, x), reference.product_quantized(x, codes))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("lines", "batch"), [(16, 4), (48, 6), (33, 7), (64, 19), (90, 261)])
def test_many_rows_are_to_the_bit_what_each_is_alone(kind: str, lines: int, batch: int) -> None:
    codes, x, bias = quantized(kind, lines, 768), torch.randn(batch, 768), torch.randn(lines)
    before = torch.randn(batch, lines)
    alone = [product(codes, kind, row[None], bias, there[None]) for row, there in zip(x, before, strict=True)]
    assert torch.equal(product(codes, kind, x, bias, before), torch.cat(alone))


@pytest.mark.parametrize("kind", FORMATS)
def test_linear_keeps_shape_and_dtype(kind: str) -> None:
    codes, bias = quantized(kind, 21, 256), torch.randn(21)
    packed, x = pack(codes, kind), torch.randn(2, 3, 256)
    for dtype in (torch.float32, torch.bfloat16):
        out = linear(x.to(dtype), packed, bias.to(dtype))
        assert out.dtype == dtype
        expected = reference.product_quantized(x.to(dtype), codes, bias.to(dtype)).to(dtype)
        torch.testing.assert_close(out, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-4)
    strided = torch.randn(256, 3).t()
    torch.testing.assert_close(linear(strided, packed), linear(strided.contiguous(), packed), rtol=0, atol=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_unpack_is_the_inverse_of_pack_and_rows_are_its_rows(kind: str) -> None:
    codes = quantized(kind, 37, 512)
    packed = pack(codes, kind)
    back = unpack(packed)
    assert (back.bits, back.zero) == (codes.bits, codes.zero)
    for part in PARTS:
        mine, its = getattr(codes, part), getattr(back, part)
        assert its is None if mine is None else torch.equal(mine, its), part
    assert torch.equal(FORMATS[kind].raw(back), FORMATS[kind].raw(codes))
    index = torch.tensor([[36, 0, 15], [16, 0, 31]])
    assert torch.equal(rows(packed, index), codes.dequantize()[index])
    assert packed.nbytes == packed.stream.numel()


@pytest.mark.parametrize("kind", FORMATS)
def test_embed_looks_rows_up(kind: str) -> None:
    codes, ids = quantized(kind, 35, 512), torch.tensor([34, 0, 15, 16, 16])
    out, behind = guarded(5, 512)
    launch(KERNELS[f"embed_{kind}"], ids, pack(codes, kind).stream, out, 512, chunks=5)
    torch.testing.assert_close(out, plain_product.rows(codes, ids), rtol=3e-7, atol=1e-6)
    assert bool((behind == 9).all())


def test_every_format_has_its_kernels() -> None:
    assert list(QUANTIZED) == list(FORMATS)
    assert set(KERNELS) == {f"{family}_{name}" for family in FAMILIES for name in FORMATS}
