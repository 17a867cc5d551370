"""Q4_1: 32 weights in 20 bytes, an fp16 scale, the smallest weight and 4-bit codes (ggml's quantize_row_q4_1_ref)."""

import torch
from torch import Tensor

from llamita.kernels.bits import halves, join_nibbles, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, fit_offset, offset_codes, offset_head
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 20
LAYOUT = Layout(bits=4, has_minimum=True)
BLOCK = LAYOUT.block


def fit(weight: Tensor) -> QuantizedBlocks:
    """Sixteen steps from the smallest weight of the block to the largest."""
    return fit_offset(weight, bits=4)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, smallest weight, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return offset_codes(split_nibbles(blocks[..., 4:]), halves(blocks[..., :4]), bits=4)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((offset_head(codes), pairs), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, minima, codes."""
    at = tile + block * BLOCK
    return v.unpack_nibbles(at + 64), v.load_fp16(at), v.load_fp16(at + 32)


def gather(words: int, source: int, lane: int) -> None:
    """The scale with the smallest weight's opposite, and the codes."""
    v.gather_words(words, source, 1, lane, 0x80000000)
    v.gather_words(words + 64, source + 4, 4, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, minima, codes."""
    v.put_fp16(words, 0, target)
    v.put_fp16(words, 16, target + 32)
    v.copy_words(words + 64, 4, target + 64)


FORMAT = BlockFormat(
    name="q4_1", ggml_type=3, file_type=3, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
