"""Q4_K: 256 weights in 144 bytes: fp16 scale and minimum, 6-bit sub-scales and sub-minima of 32, 4-bit codes.

Numbers are those of ggml's quantize_row_q4_K_ref.
"""

import torch
from torch import Tensor

from llamita.kernels.bits import halves, join_nibbles, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_256 import SIZE, fit_offset, join_factors, offset_codes, offset_head, split_factors
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 144
LAYOUT = Layout(bits=4, has_minimum=True, sub=32)
HEAD, BLOCK, EIGHT_BLOCKS = LAYOUT.head, LAYOUT.block, LAYOUT.eight_blocks


def fit(weight: Tensor) -> QuantizedBlocks:
    """Sixteen steps, tried at 21 widths from -1 to +1 step around the range of each 32 weights."""
    return fit_offset(weight, bits=4, first=-1.0, tries=21)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, minimum, 12 bytes of factors, 4 times 32 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    codes = split_nibbles(blocks[..., 16:].unflatten(-1, (4, 32)))
    factors = split_factors(blocks[..., 4:16])
    return offset_codes(codes.flatten(-3), halves(blocks[..., :4]), *factors, bits=4)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, 4, 64))).flatten(-2)
    return torch.cat((offset_head(codes), join_factors(codes), pairs), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Sub-scales, sub-minima, codes; before every eight blocks scales and minima."""
    head = tile + (block >> 3) * EIGHT_BLOCKS
    at = head + HEAD + (block & 7) * BLOCK
    scale, minimum = v.unpack_k_scales(head, at)
    return v.unpack_nibbles(at + 32), scale, minimum


def gather(words: int, source: int, lane: int) -> None:
    """All as it is."""
    v.gather_words(words, source, 36, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, minima, then eight blocks; the codes of two neighbours share their bytes in a file."""
    v.put_fp16(words, 0, target)
    v.put_fp16(words, 16, target + 32)
    for block in range(8):
        at = target + HEAD + BLOCK * block
        v.put_k_factors(words + 64, block, at)
        v.put_nibbles(words + 64 * (4 + 8 * (block >> 1)), 4 * (block & 1), at + 32)


FORMAT = BlockFormat(
    name="q4_k", ggml_type=12, file_type=None, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
