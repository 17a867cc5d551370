"""Q5_0: 32 weights in 22 bytes, an fp16 scale and 5-bit codes around 16 (ggml's quantize_row_q5_0_ref)."""

import torch
from torch import Tensor

from llamita.kernels.bits import as_bytes, join_five_bits, split_five_bits
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, fit_symmetric, symmetric_codes
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 22
LAYOUT = Layout(bits=5, zero=16)
BLOCK = LAYOUT.block


def fit(weight: Tensor) -> QuantizedBlocks:
    """32 steps, of which the weight farthest from 0 takes the lowest: -16."""
    return fit_symmetric(weight, bits=5)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, 32 fifth bits, 16 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return symmetric_codes(split_five_bits(blocks[..., 2:]), blocks[..., :2], bits=5)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    five_bits = join_five_bits(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat((as_bytes(codes.scale[..., None]), five_bits), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, codes, fifth bits."""
    at = tile + block * BLOCK
    scale = v.load_fp16(at)
    return v.unpack_fifth_bits(v.unpack_nibbles(at + 32), at + 288), scale, scale


def gather(words: int, source: int, lane: int) -> None:
    """The scale, the fifth bits and the codes."""
    v.gather_words(words, source, 1, lane, 0)
    v.gather_words(words + 64, source + 2, 5, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, codes, fifth bits."""
    v.put_fp16(words, 0, target)
    v.copy_words(words + 128, 4, target + 32)
    v.put_fifth_bits(words + 64, target + 288)


FORMAT = BlockFormat(
    name="q5_0", ggml_type=6, file_type=8, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
