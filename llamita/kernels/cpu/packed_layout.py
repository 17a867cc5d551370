"""The packed layout: quantized matrices in the order that kernels read them, one stream of bytes for sixteen rows.

Rows are taken sixteen at a time (a tile, the last padded with zeros) and columns 32 at a time (a block). Of a block the
stream has its scales, one lane a row, then its codes in words of 64 bytes: a lane of a word is a row, its four bytes
are four columns next to each other. So one load feeds one `dot4`, nothing is shuffled, and no sum crosses lanes.

- 8 bits: eight words, of columns 0-3, 4-7, ... 28-31.
- 4 bits: four words; the low halves of their bytes are columns 0-15, the high halves columns 16-31.
- 5 bits: the same, then one word of fifth bits, whose bit g is that of columns 4g to 4g + 3.
- 6 bits: the same as 4, then two words of the high two bits: columns 0-15, then 16-31, two bits a group of four.

Scales of a block: fp16 scale (and minimum), or an exponent of two in one byte. Of K-quants: fp16 scale (and minimum)
before the first of eight blocks, and before every block its sub-scales (6 bits: two, of sixteen columns each) and
sub-minima in one byte each.
"""

import torch
from torch import Tensor

from llamita.kernels.block_format import COLUMNS, TILE, Layout
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.arguments import Dequantize
from llamita.kernels.cpu.constants import NUMBERS
from llamita.kernels.cpu.runtime.program import call, named
from llamita.kernels.quantized_blocks import QuantizedBlocks

DEQUANTIZED = (torch.float32, torch.bfloat16)  # what kernels write


class Packed:
    """A packed matrix: `stream` uint8 (tiles, bytes of a tile), its block format and its shape.

    A plain class, so that moving or casting a module leaves it alone.
    """

    def __init__(self, stream: Tensor, *, format_name: str, rows: int, columns: int) -> None:
        self.stream = stream
        self.format_name = format_name
        self.rows = rows
        self.columns = columns

    @property
    def nbytes(self) -> int:
        """Bytes of the stream."""
        return self.stream.nbytes


def pack(codes: QuantizedBlocks, kind: str) -> Packed:
    """QuantizedBlocks of a format as a stream; `unpack` is its exact inverse."""
    layout = FORMATS[kind].layout
    rows, columns = codes.shape
    parts = [_lanes(x, rows) for x in (codes.scale, codes.minimum) if x is not None]  # (tiles, blocks, 32 bytes)
    words = _words(_tiled(codes.codes), layout.bits)  # (tiles, blocks, bytes)
    tiles, blocks, _ = words.shape
    if layout.sub:
        subs = [_lanes(x, rows).view(tiles, blocks, -1) for x in (codes.sub_scale, codes.sub_minimum) if x is not None]
        body = torch.cat((*subs, words), dim=2).view(tiles, blocks // 8, -1)
        stream = torch.cat((*parts, body), dim=2)
    else:
        stream = torch.cat((*parts, words), dim=2)
    return Packed(stream.reshape(tiles, -1), format_name=kind, rows=rows, columns=columns)


def unpack(packed: Packed) -> QuantizedBlocks:
    """The codes that a stream was made of."""
    return _codes(packed.stream, packed.format_name, packed.rows, packed.columns)


def dequantize(packed: Packed, dtype: torch.dtype) -> Tensor:
    """The weights (N, K), computed in fp32."""
    own = dtype if dtype in DEQUANTIZED else torch.float32
    out = torch.empty(packed.rows, packed.columns, dtype=own, device="cpu")
    arguments = Dequantize(packed.stream, out, packed.rows, packed.columns, NUMBERS[own])
    call(named("block_kernels", f"dequantize_{packed.format_name}"), arguments, chunks=len(packed.stream))
    return out.to(dtype)


def rows(packed: Packed, index: Tensor) -> Tensor:
    """The weights fp32 (..., K) of some rows, as an embedding looks them up."""
    flat = index.reshape(-1)
    tiles, places = torch.unique(flat // TILE, return_inverse=True)
    codes = _codes(packed.stream[tiles], packed.format_name, len(tiles) * TILE, packed.columns)
    return codes.take(places * TILE + flat % TILE).dequantize().view(*index.shape, -1)


def _codes(stream: Tensor, kind: str, rows: int, columns: int) -> QuantizedBlocks:
    layout, tiles, blocks = FORMATS[kind].layout, stream.shape[0], columns // COLUMNS
    scale = minimum = sub_scale = sub_minimum = None
    if layout.sub:
        whole = stream.view(tiles, blocks // 8, -1)
        scale, minimum = _scales(whole, layout, rows)
        whole = whole[..., layout.head :].reshape(tiles, blocks, layout.block)
        size = TILE * (32 // layout.sub)
        signed = torch.int8 if layout.sub == 16 else torch.uint8
        sub_scale = _rows(whole[..., :size], signed, rows)
        if layout.has_minimum:
            sub_minimum = _rows(whole[..., size : size + TILE], torch.uint8, rows)
    else:
        whole = stream.view(tiles, blocks, layout.block)
        scale, minimum = _scales(whole, layout, rows)
    values = _untiled(_unworded(whole[..., -TILE * 4 * layout.bits :], layout.bits))[:rows]
    return QuantizedBlocks(
        values, bits=layout.bits, zero=layout.zero, scale=scale, minimum=minimum, sub_scale=sub_scale,
        sub_minimum=sub_minimum, values=layout.values_on(values.device),
    )  # fmt: skip


def _scales(whole: Tensor, layout: Layout, rows: int) -> tuple[Tensor, Tensor | None]:
    size = TILE * layout.scale.itemsize
    scale = _rows(whole[..., :size], layout.scale, rows)
    minimum = _rows(whole[..., size : 2 * size], layout.scale, rows) if layout.has_minimum else None
    return scale, minimum


def _lanes(values: Tensor, rows: int) -> Tensor:
    """Values (N, groups) as bytes (tiles, groups, bytes of sixteen)."""
    padded = torch.nn.functional.pad(values, (0, 0, 0, -rows % TILE))
    lanes = padded.view(-1, TILE, values.shape[1]).transpose(1, 2).contiguous()
    return lanes.view(torch.uint8)


def _rows(lanes: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """The inverse of `_lanes`: bytes (tiles, blocks, bytes) as values (N, groups)."""
    values = lanes.contiguous().view(dtype).view(lanes.shape[0], -1, TILE)  # (tiles, groups, 16)
    values = values.transpose(1, 2).reshape(-1, values.shape[1])[:rows]
    return values.clone(memory_format=torch.contiguous_format)  # of one row too, whose strides may be anything


def _tiled(codes: Tensor) -> Tensor:
    """QuantizedBlocks (N, K) as (tiles, blocks, 8 groups, 16 rows, 4 columns)."""
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % TILE))
    return padded.view(-1, TILE, codes.shape[1] // COLUMNS, 8, 4).permute(0, 2, 3, 1, 4)


def _untiled(groups: Tensor) -> Tensor:
    return groups.permute(0, 3, 1, 2, 4).reshape(groups.shape[0] * TILE, -1).contiguous()


def _words(groups: Tensor, bits: int) -> Tensor:
    """QuantizedBlocks (tiles, blocks, 8, 16, 4) as the bytes of a block (tiles, blocks, 64 * bits)."""
    if bits == 8:
        return groups.flatten(2)
    low = groups & 15
    parts = [low[:, :, :4] | (low[:, :, 4:] << 4)]
    high = groups >> 4
    if bits == 5:
        parts.append(_gathered(high, 1))
    elif bits == 6:
        parts += [_gathered(high[:, :, :4], 2), _gathered(high[:, :, 4:], 2)]
    return torch.cat([part.flatten(2) for part in parts], dim=2)


def _gathered(high: Tensor, bits: int) -> Tensor:
    """The high bits of groups (tiles, blocks, groups, 16, 4), side by side in one word (tiles, blocks, 1, 16, 4)."""
    total = torch.zeros_like(high[:, :, :1])
    for group in range(high.shape[2]):
        total |= high[:, :, group : group + 1] << (bits * group)
    return total


def _unworded(data: Tensor, bits: int) -> Tensor:
    """The inverse of `_words`."""
    words = data.reshape(*data.shape[:2], bits, TILE, 4)
    if bits == 8:
        return words
    codes = torch.cat((words[:, :, :4] & 15, words[:, :, :4] >> 4), dim=2)
    if bits == 5:
        high = [(words[:, :, 4:5] >> group) & 1 for group in range(8)]
    elif bits == 6:
        high = [(words[:, :, 4 + group // 4 : 5 + group // 4] >> (2 * (group % 4))) & 3 for group in range(8)]
    else:
        return codes
    return codes | (torch.cat(high, dim=2) << 4)
