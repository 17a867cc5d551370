"""Run a kernel by itself, and quantized matrices to run it on."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import isa, simd
from llamita.kernels.cpu.runtime.program import Kernel, Program
from llamita.kernels.quantized_blocks import QuantizedBlocks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Arguments = Sequence[Tensor | int | float | None]


def launch(kernel: Kernel, *arguments: Tensor | int | float | None, chunks: int = 1, threads: int = 1) -> None:
    """Call a kernel once: tensors are given as addresses, None as 0, floats as the bits of their fp32."""
    call(kernel, arguments, chunks=chunks, threads=threads)


def call(kernel: Kernel, arguments: Arguments, *, chunks: int = 1, threads: int = 1) -> None:
    """The same with the arguments as a struct."""
    program = Program()
    program.add(kernel, [number(argument) for argument in arguments], chunks=chunks)
    program.run(threads)


def number(argument: Tensor | int | float | None) -> int:
    """What a program's row holds of an argument."""
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return argument.data_ptr()
    if isinstance(argument, float):
        return struct.unpack("<q", struct.pack("<ff", argument, 0.0))[0]
    return argument or 0


def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A tensor of this shape, full of nines, and the room behind it that nobody may write to."""
    size = torch.Size(shape).numel()
    room = torch.full((size + 32,), 9.0, dtype=dtype)
    return room[:size].view(shape), room[size:]


def quantized(name: str, rows: int, columns: int, *, scale: float = 1.0) -> QuantizedBlocks:
    """A random matrix in a block format, one block of it all zeros."""
    weight = torch.randn(rows, columns) * scale
    block = FORMATS[name].block
    weight[-1, :block] = 0
    return FORMATS[name].codes(FORMATS[name].quantize(weight))


def compiled_for() -> list[isa.InstructionSet]:
    """The rows of the table whose instructions may be in the code that is compiled here."""
    triple, _, features = simd.target()
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    return [row for row in isa.INSTRUCTION_SETS if triple.startswith(row.machine) and row.needs <= has]
