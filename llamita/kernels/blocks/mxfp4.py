"""MXFP4: 32 weights in 17 bytes, a power of two (E8M0) and 4-bit floats (E2M1), as in the OCP's microscaling formats.

Numbers are those of ggml's quantize_row_mxfp4_ref. As there the floats are counted in halves and scales are half as
large, and no scale is NaN: the byte 255, which the OCP's text gives to that, goes on the series of powers.
"""

from itertools import pairwise

import torch
from torch import Tensor

from llamita.kernels.bits import join_nibbles, powers_of_two, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, blocks_of, value_codes
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 17
SIZES = (0, 1, 2, 3, 4, 6, 8, 12)
LAYOUT = Layout(bits=4, values=(*SIZES, *(-size for size in SIZES)), scale=torch.int8)
BLOCK, (LOW, HIGH) = LAYOUT.block, LAYOUT.table
BETWEEN = tuple((low + high) / 2 for low, high in pairwise(SIZES))
LARGEST = 3  # the exponent of the largest size


def fit(weight: Tensor) -> QuantizedBlocks:
    """The scale under which the largest weight lies between 8 and 16; what is beyond 12 takes 12."""
    blocks = blocks_of(weight)
    most = blocks.abs().amax(-1, keepdim=True)
    # A logarithm just below an integer may round to it in fp32, which is what ggml goes by.
    exponents = (most.double().log2().float().floor() - LARGEST).clamp(-128, 127).to(torch.int8)
    between = torch.tensor(BETWEEN, dtype=torch.float32, device=weight.device)
    sizes = torch.bucketize(blocks.abs() / powers_of_two(exponents), between)  # of two as near the smaller
    codes = sizes + 8 * ((blocks < 0) & (sizes > 0))
    return value_codes(LAYOUT, codes.to(torch.uint8).flatten(-2), exponents.flatten(-2))


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, 16 pairs of codes. A byte of 128 stands for 1, as ggml halves the scale."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    exponents = (blocks[..., 0] ^ 128).view(torch.int8)
    return value_codes(LAYOUT, split_nibbles(blocks[..., 1:]).flatten(-2), exponents)


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    pairs = join_nibbles(codes.codes.unflatten(-1, (-1, SIZE)))
    return torch.cat(((codes.scale.view(torch.uint8) ^ 128)[..., None], pairs), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Exponents, codes."""
    at = tile + block * BLOCK
    scale = v.scale_by_power_of_two(v.broadcast(1.0), v.load_int8(at))
    return v.unpack_values(v.unpack_nibbles(at + 16), LOW, HIGH), scale, scale


def gather(words: int, source: int, lane: int) -> None:
    """The exponent, as a signed byte, and the codes."""
    v.gather_words(words, source, 1, lane, 0x80)
    v.gather_words(words + 64, source + 1, 4, lane, 0)


def put(words: int, target: int) -> None:
    """Exponents, codes."""
    v.store_int8(target, v.load_words(words))
    v.copy_words(words + 64, 4, target + 16)


FORMAT = BlockFormat(
    name="mxfp4", ggml_type=39, file_type=38, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
