"""Repack the blocks of a GGUF file into the order that kernels read; the kernels are made in `repack_blocks`."""

import torch
from torch import Tensor

from llamita.kernels.block_format import TILE
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.arguments import Pack
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime.huge_pages import advise
from llamita.kernels.cpu.runtime.program import call, named

KERNELS = {name: named("block_kernels", f"pack_{name}") for name in FORMATS}
_CHUNK = 1 << 17  # bytes of the stream that a thread writes at once, and a tile at least


def repack(raw: Tensor, name: str, order: Tensor | None = None) -> Packed:
    """Blocks uint8 (N, bytes of a row) of a format, packed.

    order: int64 (N,), the row of blocks that is to be each row of the matrix; None leaves them as they are.
    """
    form, rows = FORMATS[name], raw.shape[0]
    blocks = raw.shape[1] // form.nbytes
    width = blocks * form.packed_nbytes  # bytes of a tile
    stream = torch.empty(-(-rows // TILE), width, dtype=torch.uint8, device="cpu")
    advise(stream)
    tiles = max(1, _CHUNK // max(1, width))
    if order is not None:  # what else is in it would be read from anywhere
        order = order.to(torch.int64).contiguous()
        assert order.shape == (rows,) and (not rows or 0 <= int(order.min()) <= int(order.max()) < rows)
    arguments = Pack(raw.contiguous(), order, stream, rows, blocks, tiles)
    call(KERNELS[name], arguments, chunks=-(-stream.shape[0] // tiles))
    return Packed(stream, format_name=name, rows=rows, columns=blocks * form.block)
