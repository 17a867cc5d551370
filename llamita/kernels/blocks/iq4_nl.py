"""IQ4_NL: 32 weights in 18 bytes, an fp16 scale and 4-bit codes for sixteen numbers that lie closer together near 0.

Numbers are those of ggml's quantize_iq4_nl without an importance matrix, which is what llama-quantize calls.
"""

from itertools import pairwise

import torch
from torch import Tensor

from llamita.kernels.bits import halves, split_nibbles
from llamita.kernels.block_format import BlockFormat, Layout, Unpacked
from llamita.kernels.block_search import NEARLY_ZERO, in_order, quotient
from llamita.kernels.blocks.q4_0 import gather, put, write  # scale and codes lie in a block as there
from llamita.kernels.blocks_of_32 import SIZE, inverse, value_codes
from llamita.kernels.cpu import vector as v
from llamita.kernels.quantized_blocks import QuantizedBlocks

NBYTES = 18
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LAYOUT = Layout(bits=4, values=VALUES)
BLOCK, (LOW, HIGH) = LAYOUT.block, LAYOUT.table
BETWEEN = tuple(low + high for low, high in pairwise(VALUES))  # in halves, where the next value becomes the nearest
NEAREST = [sum(between <= half for between in BETWEEN) for half in range(-256, 256)]  # of two the upper
TRIES = 7  # on either side of the scale that gives the largest weight the value -127


def fit(weight: Tensor) -> QuantizedBlocks:
    """The scale of 16 tried that has the least squared error, each weight counting by its square."""
    x = weight.float().view(-1, SIZE).t().contiguous()  # (32, blocks), so that sums run as ggml's do
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]  # with its sign
    is_zero = largest.abs() < NEARLY_ZERO
    largest = torch.where(is_zero, 1, largest)
    nearest = torch.tensor([float(VALUES[code]) for code in NEAREST], dtype=torch.float32, device=x.device)
    sum_lx, sum_ll = _moments(x, quotient(1, largest / largest.new_tensor(127.0)), nearest)
    scale = sum_lx / sum_ll
    best = scale * sum_lx
    for step in range(-TRIES, TRIES + 1):
        sum_lx, sum_ll = _moments(x, quotient(step + VALUES[0], largest), nearest)
        better = (sum_ll > 0) & (sum_lx * sum_lx > best * sum_ll)
        scale = torch.where(better, sum_lx / sum_ll, scale)
        best = torch.where(better, scale * sum_lx, best)
    scale = torch.where(is_zero, 0, scale)
    codes = torch.tensor(NEAREST, dtype=torch.uint8, device=x.device)[_halves(x, inverse(scale))]
    return value_codes(LAYOUT, codes.t().reshape(weight.shape), scale.half().view(weight.shape[0], -1))


def _moments(x: Tensor, factor: Tensor, nearest: Tensor) -> Tensor:
    """Sums over each block of weight**2 * value * weight and of weight**2 * value**2: (2, blocks)."""
    values = nearest[_halves(x, factor)]
    weighted = x * x * values
    return in_order(torch.stack((weighted * x, weighted * values), dim=1))


def _halves(x: Tensor, factor: Tensor) -> Tensor:
    """Where in NEAREST the multiplied weights (32, blocks) lie, counted in halves."""
    halves = (x * factor).mul_(2).floor_().nan_to_num_(nan=255.0)
    return halves.clamp_(-256, 255).to(torch.int32).add_(256)


def read(raw: Tensor) -> QuantizedBlocks:
    """Scale, 16 pairs of codes."""
    blocks = raw.unflatten(-1, (-1, NBYTES))
    return value_codes(LAYOUT, split_nibbles(blocks[..., 2:]).flatten(-2), halves(blocks[..., :2]).flatten(-2))


def unpack(tile: int, block: int) -> Unpacked:
    """Scales, codes."""
    at = tile + block * BLOCK
    scale = v.load_fp16(at)
    return v.unpack_values(v.unpack_nibbles(at + 32), LOW, HIGH), scale, scale


FORMAT = BlockFormat(
    name="iq4_nl", ggml_type=20, file_type=25, block=SIZE, nbytes=NBYTES, layout=LAYOUT,
    fit=fit, read=read, write=write, unpack=unpack, gather=gather, put=put,
)  # fmt: skip
