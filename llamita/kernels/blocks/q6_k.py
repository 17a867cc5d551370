"""Q6_K: 256 weights in 210 bytes: an fp16 scale, signed 8-bit sub-scales of 16, 6-bit codes around 32.

Numbers are those of ggml's quantize_row_q6_K_ref.
"""

import torch
from torch import Tensor

from llamita.kernels import block_search
from llamita.kernels.bits import as_bytes, bit_shifts, halves, join_nibbles, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_256 import SIZE
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 210
LAYOUT = Layout(bits=6, zero=32, sub=16)
HEAD, BLOCK, EIGHT_BLOCKS = LAYOUT.head, LAYOUT.block, LAYOUT.eight_blocks


def fit(weight: Tensor) -> QuantizedBlocks:
    """64 steps, tried at 19 widths from -0.9 to +0.9 steps around the largest of each 16 weights."""
    codes, scale, sub_scale = block_search.symmetric_blocks(weight.float().view(-1, SIZE))
    rows = weight.shape[0]
    return _codes(codes.view(rows, -1), scale.view(rows, -1), sub_scale.view(rows, -1))


def read(raw: Tensor) -> QuantizedBlocks:
    """128 bytes of low nibbles, 64 of high pairs of bits, 16 signed factors, scale; twice 128 weights."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    low = split_nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, 32))
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> bit_shifts(4, 2, raw)[:, None] & 3  # (N, blocks, 2, 4, 32)
    factors = blocks[..., 192:208].contiguous().view(torch.int8).flatten(-2)
    return _codes((low | high << 4).flatten(-4), halves(blocks[..., 208:]).flatten(-2), factors)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    assert codes.sub_scale is not None
    groups = codes.codes.unflatten(-1, (-1, 2, 4, 32))
    low = join_nibbles((groups & 15).flatten(-2)).flatten(-2)
    high = ((groups >> 4) << bit_shifts(4, 2, groups)[:, None]).sum(-2, dtype=torch.uint8).flatten(-2)
    factors = as_bytes(codes.sub_scale.unflatten(-1, (-1, 16)))
    return torch.cat((low, high, factors, as_bytes(codes.scale[..., None])), dim=-1).flatten(-2)


def _codes(codes: Tensor, scale: Tensor, sub_scale: Tensor) -> QuantizedBlocks:
    return QuantizedBlocks(codes, bits=LAYOUT.bits, zero=LAYOUT.zero, scale=scale, sub_scale=sub_scale)


def unpack(tile: int, block: int) -> Unpacked:
    """Two signed sub-scales, codes, two words of high bits; before every eight blocks scales."""
    head = tile + (block >> 3) * EIGHT_BLOCKS
    at = head + HEAD + (block & 7) * BLOCK
    scale = v.load_fp16(head)
    first = v.mul(scale, v.to_fp32(v.load_int8(at)))
    words = v.unpack_sixth_bits(v.unpack_nibbles(at + 32), at + 288)
    return words, first, v.mul(scale, v.to_fp32(v.load_int8(at + 16)))


def gather(words: int, source: int, lane: int) -> None:
    """All as it is; the scale is the last two bytes of the block, and perhaps of the file."""
    v.gather_words(words, source, 52, lane, 0)
    v.gather_words(words + 64 * 52, source + 206, 1, lane, 0)


def put(words: int, target: int) -> None:
    """Scales, then eight blocks; the codes of two share their bytes in a file, and the high bits of four."""
    v.put_fp16(words + 64 * 52, 16, target)
    for block in range(8):
        at, half, quarter = target + HEAD + BLOCK * block, block >> 2, block & 3
        factors = v.load_words(words + 64 * (48 + (block >> 1)))
        v.store_int8(at, v.extract_bits(factors, 16 * (block & 1), 255))
        v.store_int8(at + 16, v.extract_bits(factors, 16 * (block & 1) + 8, 255))
        v.put_nibbles(words + 64 * (16 * half + 8 * (quarter & 1)), 4 * (quarter >> 1), at + 32)
        high = words + 64 * (32 + 8 * half)
        v.put_high_bits(high, 4, 2 * quarter, 0x03030303, 2, at + 288)
        v.put_high_bits(high + 256, 4, 2 * quarter, 0x03030303, 2, at + 352)


FORMAT = BlockFormat(
    name="q6_k", ggml_type=14, file_type=18, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
