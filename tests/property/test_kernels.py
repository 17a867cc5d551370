"""Quantized matrices keep every bit on their way into the kernels' order and back, whatever the bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import packed_layout
from llamita.kernels.quantized_blocks import QuantizedBlocks

PARTS = ("codes", "scale", "minimum", "sub_scale", "sub_minimum", "values")


def random_codes(kind: str, rows: int, columns: int, seed: int) -> QuantizedBlocks:
    """QuantizedBlocks of random bits; scales as well, so that some are infinite or no numbers."""
    made = torch.Generator().manual_seed(seed)

    def bits(dtype: torch.dtype, *shape: int) -> Tensor:
        size = dtype.itemsize
        return torch.randint(256, (*shape[:-1], shape[-1] * size), generator=made, dtype=torch.uint8).view(dtype)

    layout = FORMATS[kind].layout
    blocks, signed = columns // FORMATS[kind].block, torch.int8 if layout.sub == 16 else torch.uint8
    return QuantizedBlocks(
        bits(torch.uint8, rows, columns) & ((1 << layout.bits) - 1),
        bits=layout.bits,
        zero=layout.zero,
        scale=bits(layout.scale, rows, blocks),
        values=layout.values_on(torch.device("cpu")),
        minimum=bits(torch.float16, rows, blocks) if layout.has_minimum else None,
        sub_scale=bits(signed, rows, columns // layout.sub) if layout.sub else None,
        sub_minimum=bits(torch.uint8, rows, columns // 32) if layout.sub and layout.has_minimum else None,
    )


def same(mine: Tensor | None, its: Tensor | None) -> bool:
    """Both are absent, or equal bit for bit."""
    if mine is None or its is None:
        return mine is its
    return mine.dtype == its.dtype and torch.equal(mine.view(torch.uint8), its.contiguous().view(torch.uint8))


@pytest.mark.parametrize("kind", FORMATS)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 3), seed=st.integers(0, 1 << 32), data=st.data())
def test_pack_and_unpack(kind: str, rows: int, blocks: int, seed: int, data: st.DataObject) -> None:
    codes = random_codes(kind, rows, blocks * FORMATS[kind].block, seed)
    stream = packed_layout.pack(codes, kind)
    assert stream.stream.shape == (-(-rows // 16), stream.nbytes // -(-rows // 16))
    back = packed_layout.unpack(stream)
    assert (back.bits, back.zero, back.shape) == (codes.bits, codes.zero, codes.shape)
    assert all(same(getattr(codes, part), getattr(back, part)) for part in PARTS)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5)))
    looked_up, expected = packed_layout.rows(stream, index), codes.take(index).dequantize()
    assert torch.equal(looked_up.nan_to_num(), expected.nan_to_num())
