"""Q4_0: 32 weights in 18 bytes, an fp16 scale and 4-bit codes around 8 (ggml's quantize_row_q4_0_ref)."""

import torch
from torch import Tensor

from llamita.kernels.bits import as_bytes, join_nibbles, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, fit_symmetric, symmetric_codes
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 18
LAYOUT = Layout(bits=4, zero=8)
BLOCK = LAYOUT.block


def fit(weight: Tensor) -> QuantizedBlocks:
    """Sixteen steps, of which the weight farthest from 0 takes the lowest: -8."""
    return fit_symmetric(weight, bits=4)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return symmetric_codes(split_nibbles(blocks[..., 2:]), blocks[..., :2], bits=4)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((as_bytes(codes.scale[..., None]), pairs), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, codes."""
    at = tile + block * BLOCK
    scale = v.load_fp16(at)
    return v.unpack_nibbles(at + 32), scale, scale


def gather(words: int, source: int, lane: int) -> None:
    """The scale and the codes."""
    v.gather_words(words, source, 1, lane, 0)
    v.gather_words(words + 64, source + 2, 4, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, codes."""
    v.put_fp16(words, 0, target)
    v.copy_words(words + 64, 4, target + 32)


FORMAT = BlockFormat(
    name="q4_0", ggml_type=2, file_type=2, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
