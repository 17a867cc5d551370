"""Q5_K: 256 weights in 176 bytes: fp16 scale and minimum, 6-bit sub-scales and sub-minima of 32, 5-bit codes.

Numbers are those of ggml's quantize_row_q5_K_ref.
"""

import torch
from torch import Tensor

from llamita.kernels.bits import bit_shifts, halves, join_nibbles, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_256 import SIZE, fit_offset, join_factors, offset_codes, offset_head, split_factors
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 176
LAYOUT = Layout(bits=5, has_minimum=True, sub=32)
HEAD, BLOCK, EIGHT_BLOCKS = LAYOUT.head, LAYOUT.block, LAYOUT.eight_blocks


def fit(weight: Tensor) -> QuantizedBlocks:
    """32 steps, tried at 16 widths from -0.5 to +1 step around the range of each 32 weights."""
    return fit_offset(weight, bits=5, first=-0.5, tries=16)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, minimum, 12 bytes of factors, 32 of fifth bits, 4 times 32 pairs of low codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    low = split_nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    fifth = blocks[..., None, 16:48] >> bit_shifts(8, 1, raw)[:, None] & 1  # (N, blocks, 8, 32)
    factors = split_factors(blocks[..., 4:16])
    return offset_codes((low | fifth << 4).flatten(-3), halves(blocks[..., :4]), *factors, bits=5)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    groups = codes.codes.unflatten(-1, (-1, 8, 32))
    fifth = ((groups >> 4) << bit_shifts(8, 1, groups)[:, None]).sum(-2, dtype=torch.uint8)
    pairs = join_nibbles((groups & 15).flatten(-2).unflatten(-1, (4, 64))).flatten(-2)
    return torch.cat((offset_head(codes), join_factors(codes), fifth, pairs), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Sub-scales, sub-minima, codes, fifth bits; before every eight blocks scales and minima."""
    head = tile + (block >> 3) * EIGHT_BLOCKS
    at = head + HEAD + (block & 7) * BLOCK
    scale, minimum = v.unpack_k_scales(head, at)
    return v.unpack_fifth_bits(v.unpack_nibbles(at + 32), at + 288), scale, minimum


def gather(words: int, source: int, lane: int) -> None:
    """All as it is."""
    v.gather_words(words, source, 44, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, minima, then eight blocks; the codes of two neighbours share their bytes in a file."""
    v.put_fp16(words, 0, target)
    v.put_fp16(words, 16, target + 32)
    for block in range(8):
        at = target + HEAD + BLOCK * block
        v.put_k_factors(words + 64, block, at)
        v.put_nibbles(words + 64 * (12 + 8 * (block >> 1)), 4 * (block & 1), at + 32)
        v.put_high_bits(words + 256, 8, block, 0x01010101, 1, at + 288)


FORMAT = BlockFormat(
    name="q5_k", ggml_type=13, file_type=None, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
