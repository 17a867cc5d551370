"""Bytes looked up in a table of sixteen: the same by every instruction for it, and without any."""

from typing import Any

import pytest
import torch

from llamita.kernels.cpu import lookup
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.runtime.program import Kernel, kernel
from tests.unit.kernels.cpu.launch import compiled_for, launch

# What the machine takes, and each way of an instruction set that it runs.
WAYS: dict[str, Any] = {"here": lookup._lookup} | {row.lookup: lookup.LOOKUPS[row.lookup] for row in compiled_for()}


def made(emit: Any) -> Kernel:
    """A kernel of 64 bytes, two numbers, and what comes out."""
    operation = v.operation(v.Words(v.Words, v.i64, v.i64), emit)

    def compute(at: int, chunk: int) -> None:
        words = operation(v.load_words(v.read(at)), v.read(at + 8), v.read(at + 16))
        v.store_words(v.read(at + 24), words)

    return kernel(compute)


@pytest.mark.parametrize("way", WAYS)
def test_every_byte_takes_its_own_of_the_table(way: str) -> None:
    look_up = made(WAYS[way])
    for _ in range(5):
        table, codes = torch.randint(256, (16,), dtype=torch.uint8), torch.randint(16, (64,), dtype=torch.uint8)
        codes[16:32] = torch.arange(16)
        out = torch.empty(64, dtype=torch.uint8)
        low, high = table.view(torch.int64).tolist()
        launch(look_up, codes, low, high, out)
        assert torch.equal(out, table[codes.int()])
