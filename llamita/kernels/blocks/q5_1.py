"""Q5_1: 32 weights in 24 bytes, an fp16 scale, the smallest weight and 5-bit codes (ggml's quantize_row_q5_1_ref)."""

import torch
from torch import Tensor

from llamita.kernels.bits import halves, join_five_bits, split_five_bits
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, fit_offset, offset_codes, offset_head
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 24
LAYOUT = Layout(bits=5, has_minimum=True)
BLOCK = LAYOUT.block


def fit(weight: Tensor) -> QuantizedBlocks:
    """32 steps from the smallest weight of the block to the largest."""
    return fit_offset(weight, bits=5)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, smallest weight, 32 fifth bits, 16 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return offset_codes(split_five_bits(blocks[..., 4:]), halves(blocks[..., :4]), bits=5)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    five_bits = join_five_bits(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((offset_head(codes), five_bits), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, minima, codes, fifth bits."""
    at = tile + block * BLOCK
    words = v.unpack_fifth_bits(v.unpack_nibbles(at + 64), at + 320)
    return words, v.load_fp16(at), v.load_fp16(at + 32)


def gather(words: int, source: int, lane: int) -> None:
    """The scale with the smallest weight's opposite, the fifth bits and the codes."""
    v.gather_words(words, source, 1, lane, 0x80000000)
    v.gather_words(words + 64, source + 4, 5, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, minima, codes, fifth bits."""
    v.put_fp16(words, 0, target)
    v.put_fp16(words, 16, target + 32)
    v.copy_words(words + 128, 4, target + 64)
    v.put_fifth_bits(words + 64, target + 320)


FORMAT = BlockFormat(
    name="q5_1", ggml_type=7, file_type=9, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
