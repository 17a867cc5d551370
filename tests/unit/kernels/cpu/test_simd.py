"""What LLVM makes of the machine operations that kernels are written with."""

import torch

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import inline, kernel
from tests.unit.kernels.cpu.launch import launch


@inline
def _sum_or_one(number, at, count):
    """The sum of some numbers; where it is more than 5, what stands `number` cache lines behind the first instead."""
    place, total = 64 * number + at, 0
    for i in range(count):
        total += v.read(at + 8 * i)
    return v.read(place) if total > 5 else total


@kernel
def sum_or_first(at: int, chunk: int) -> None:
    """Numbers, out, and how many numbers."""
    v.write_int32(v.read(at + 8), _sum_or_one(e.FP32, v.read(at), v.read(at + 16)))


def test_an_address_whose_first_part_is_nothing() -> None:
    """LLVM takes one part of a sum for a pointer, and this one is 0: still no access through null."""
    for numbers, expected in (([7, 1, 2], 7), ([1, 1], 2)):
        out = torch.zeros(1, dtype=torch.int32)
        launch(sum_or_first, torch.tensor(numbers), out, len(numbers))
        assert out.item() == expected
