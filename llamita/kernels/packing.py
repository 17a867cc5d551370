"""From the blocks of a GGUF file to the stream that kernels read; the kernels are those of `raw`."""

import torch
from torch import Tensor

from llamita.kernels.packed import LAYOUTS, TILE, Packed
from llamita.kernels.pages import make_large
from llamita.kernels.program import Program, named

SIZES = {  # bytes of a block in a file
    "q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q4_k": 144, "q5_k": 176, "q6_k": 210,
}  # fmt: skip
KERNELS = {kind: named("raw", f"pack_{kind}") for kind in SIZES}
_CHUNK = 1 << 17  # bytes of the stream that a thread writes at once, and a tile at least


def pack_raw(raw: Tensor, kind: str, order: Tensor | None = None) -> Packed:
    """Blocks uint8 (N, bytes of a row) of a kind in `LAYOUTS`, as a stream.

    order: int64 (N,), the row of blocks that is to be each row of the matrix; None leaves them as they are.
    """
    layout, rows, blocks = LAYOUTS[kind], raw.shape[0], raw.shape[1] // SIZES[kind]
    width = blocks * (layout.head + 8 * layout.block if layout.sub else layout.block)  # bytes of a tile
    stream = torch.empty(-(-rows // TILE), width, dtype=torch.uint8, device="cpu")
    make_large(stream)
    tiles = max(1, _CHUNK // max(1, width))
    if order is not None:  # what else is in it would be read from anywhere
        order = order.to(torch.int64).contiguous()
        assert order.shape == (rows,) and (not rows or 0 <= int(order.min()) <= int(order.max()) < rows)
    program = Program()
    program.add(
        KERNELS[kind], raw.contiguous(), order, stream, rows, blocks, tiles, chunks=-(-stream.shape[0] // tiles)
    )
    program.run()
    return Packed(stream, kind=kind, rows=rows, columns=blocks * (256 if layout.sub else 32))
