"""Q8_0: 32 weights in 34 bytes, an fp16 scale and signed codes (ggml's quantize_row_q8_0_ref)."""

import torch
from torch import Tensor

from llamita.kernels.bits import as_bytes, halves, round_half_away
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.blocks_of_32 import SIZE, blocks_of, inverse
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 34
LAYOUT = Layout(bits=8, zero=128)
BLOCK = LAYOUT.block


def fit(weight: Tensor) -> QuantizedBlocks:
    """127 steps on either side of 0."""
    blocks = blocks_of(weight)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = round_half_away(blocks * inverse(scale)) + 128
    return QuantizedBlocks(codes.to(torch.uint8).flatten(-2), bits=8, zero=128, scale=scale.half().flatten(-2))


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, 32 signed codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return QuantizedBlocks(
        (blocks[..., 2:] ^ 128).flatten(-2), bits=8, zero=128, scale=halves(blocks[..., :2]).flatten(-2)
    )


def write(codes: QuantizedBlocks) -> Tensor:
    """The inverse of read."""
    signed = codes.codes.unflatten(-1, (-1, SIZE)) ^ 128
    return torch.cat((as_bytes(codes.scale[..., None]), signed), dim=-1).flatten(-2)


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, codes."""
    at = tile + block * BLOCK
    scale = v.load_fp16(at)
    return v.unpack_bytes(at + 32), scale, scale


def gather(words: int, source: int, lane: int) -> None:
    """The scale, and the codes counted from 0."""
    v.gather_words(words, source, 1, lane, 0)
    v.gather_words(words + 64, source + 2, 8, lane, 0x80808080)


def put(words: int, target: int) -> None:
    """Scales, codes."""
    v.put_fp16(words, 0, target)
    v.copy_words(words + 64, 8, target + 32)


FORMAT = BlockFormat(
    name="q8_0", ggml_type=8, file_type=7, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
