"""Packed blocks become the weights of their codes, to the last bit."""

import pytest
import torch

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.packed_layout import dequantize, pack
from tests.unit.kernels.cpu.launch import quantized


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_every_format(name: str, rows: int) -> None:
    codes = quantized(name, rows, 512)
    packed, weights = pack(codes, name), codes.dequantize()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(dequantize(packed, dtype), weights.to(dtype))
