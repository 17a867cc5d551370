"""Numbers that codes stand for, and scales that are powers of two."""

import torch

from llamita.kernels.bits import powers_of_two
from llamita.kernels.quantized_blocks import QuantizedBlocks


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-128, 128)
    expected = [2.0**exponent for exponent in exponents.tolist()]
    assert powers_of_two(exponents.to(torch.int8)).tolist() == expected
    assert powers_of_two(torch.tensor([-149, -129])).tolist() == [2.0**-149, 2.0**-129]


def test_codes_of_a_table_and_scales_that_are_exponents() -> None:
    values = torch.randint(-128, 128, (16,), dtype=torch.int8)
    numbers = torch.randint(16, (5, 96), dtype=torch.uint8)
    exponents = torch.tensor([[0, 3, -128]] * 5, dtype=torch.int8)
    codes = QuantizedBlocks(numbers, bits=4, zero=0, scale=exponents, values=values)
    expected = values[numbers.long()].double() * exponents.double().exp2().repeat_interleave(32, dim=1)
    assert torch.equal(codes.dequantize().double(), expected)
    assert torch.equal(codes.take(torch.tensor([4, 1])).dequantize().double(), expected[[4, 1]])
