"""The arguments of kernels as structs: Python fills them by name, and kernels read them at the same names' offsets.

Every argument takes eight bytes: an address, an int64, or the bits of an fp32 in the low half.
"""

import struct
from typing import Any, NamedTuple

Argument = Any  # a tensor, an int or None where Python fills a struct; an offset where a kernel reads one


def offsets(struct: Any) -> Any:
    """The byte offset of each argument, under its name."""
    return struct(*range(0, 8 * len(struct._fields), 8))


def bits(number: float) -> int:
    """The fp32 of a number as the integer that a program's row holds."""
    return struct.unpack("<q", struct.pack("<ff", number, 0.0))[0]


class Embed(NamedTuple):
    """Rows of a table: ids int64 (B,), table (V, D), out fp32 (B, D). A chunk is a row of the batch."""

    ids: Argument
    table: Argument
    out: Argument
    columns: Argument


class Norm(NamedTuple):
    """RMSNorm of rows of x fp32 (T, D). A chunk is a row of out fp32 (n, D).

    weight (D,), of the dtype of this number; epsilon fp32. which: int64 (n,), the rows of x; None for all in order.
    halves and q8_blocks: None, or where the same goes in bf16 and as q8_blocks, for which D is a multiple of 32.
    """

    x: Argument
    weight: Argument
    out: Argument
    halves: Argument
    q8_blocks: Argument
    columns: Argument
    epsilon: Argument
    which: Argument
    dtype: Argument


class Gate(NamedTuple):
    """silu(gate) * up of fp32 (B, F), as out, halves and q8_blocks (see Norm). A chunk is `chunk` elements of `size`.

    `chunk` is a multiple of 32.
    """

    gate: Argument
    up: Argument
    out: Argument
    halves: Argument
    q8_blocks: Argument
    chunk: Argument
    size: Argument


class Exponentials(NamedTuple):
    """e to the power of x fp32 (B, V) less the largest of its row, most (B,): out (B, V). A chunk is a row."""

    x: Argument
    most: Argument
    out: Argument
    columns: Argument


class Round(NamedTuple):
    """x fp32 as halves or q8_blocks (see Norm). A chunk is `chunk` elements, a multiple of 32, of `size`."""

    x: Argument
    halves: Argument
    q8_blocks: Argument
    chunk: Argument
    size: Argument


class Angles(NamedTuple):
    """Cosines and sines (B, H/2), times factor fp32, of positions int64 (B,) and frequencies (H/2,).

    A chunk is a row.
    """

    positions: Argument
    frequencies: Argument
    cosines: Argument
    sines: Argument
    half: Argument
    factor: Argument


class Linear(NamedTuple):
    """x (batch, columns) times weight (rows, columns), plus bias fp32 (rows,) or None: out fp32 (batch, rows).

    x: bf16 with a weight in bf16, else fp32. `adds`: whether out is added to. A chunk is `rows_of_chunk` rows of the
    weight, a multiple of 4, with `batch_of_chunk` rows of x; chunks go over the weight first.
    """

    weight: Argument
    x: Argument
    out: Argument
    bias: Argument
    rows: Argument
    columns: Argument
    batch: Argument
    adds: Argument
    rows_of_chunk: Argument
    batch_of_chunk: Argument


class Attend(NamedTuple):
    """Attention of new tokens over a cache, for `decode_attention` and `prefill_attention`.

    q (T, N, H), k and v (T, K, H): fp32 of all new tokens, not rotated. cosines, sines: (T, H/2). keys, values: the
    cache. rows: int64 (B, 8), see Row. out: fp32 (T, N, H). sizes: see Sizes. halves and q8_blocks: of out (see Norm).
    For `prefill_attention` alone: blocks, int64 (n, 2), a row and the number of a token of it, with which a block of
    queries begins; tiles, int64 (n, 2), the same of 64 keys; wide_keys, wide_values: what rows see, see Row.
    """

    q: Argument
    k: Argument
    v: Argument
    cosines: Argument
    sines: Argument
    keys: Argument
    values: Argument
    rows: Argument
    out: Argument
    sizes: Argument
    halves: Argument
    q8_blocks: Argument
    blocks: Argument
    tiles: Argument
    wide_keys: Argument
    wide_values: Argument


class WholeAttention(NamedTuple):
    """Causal attention of bf16 over whole sequences, for `whole_attention`; q and k are rotated.

    q, out (B, T, N, H), k, v (B, T, K, H), H a multiple of 32. most, totals: fp32 (B, T, N), the largest score of a
    query, without scale, and the softmax's denominator after it. starts, work, work_size, scale: as in
    AttentionGradients.
    """

    q: Argument
    k: Argument
    v: Argument
    out: Argument
    most: Argument
    totals: Argument
    starts: Argument
    work: Argument
    work_size: Argument
    tokens: Argument
    heads: Argument
    group: Argument
    width: Argument
    scale: Argument


class AttentionGradients(NamedTuple):
    """Gradients of causal attention, for `attention_gradients`; q, k and v are rotated.

    q, out, d_out, d_q (B, T, N, H), k, v, d_k, d_v (B, T, K, H): of one dtype, H a multiple of 32. logs: fp32
    (B, T, N), the logarithms of the softmax's denominators. starts: int64 (B, T), the first key that a query sees,
    which never falls in a row. work: `work_size` bytes for each chunk. scale: fp32, on the scores.
    """

    q: Argument
    k: Argument
    v: Argument
    out: Argument
    d_out: Argument
    logs: Argument
    starts: Argument
    d_q: Argument
    d_k: Argument
    d_v: Argument
    work: Argument
    work_size: Argument
    tokens: Argument
    heads: Argument
    group: Argument
    width: Argument
    scale: Argument


class Pack(NamedTuple):
    """Blocks of a file, uint8 (rows, bytes of a row), as a packed stream. order: int64 (rows,), or None for none.

    A chunk is `tiles` tiles.
    """

    blocks: Argument
    order: Argument
    stream: Argument
    rows: Argument
    blocks_of_row: Argument
    tiles: Argument


class Dequantize(NamedTuple):
    """The weights of a packed matrix: out (rows, columns), fp32 or bf16 by the dtype's number. A chunk is a tile."""

    stream: Argument
    out: Argument
    rows: Argument
    columns: Argument
    dtype: Argument


class LinearQuantized(NamedTuple):
    """q8_blocks (batch, columns / 32) times a packed matrix, plus bias fp32 (rows,) or None: out fp32 (batch, rows).

    `adds`: whether out is added to. A chunk is `tiles` tiles with `batch_of_chunk` rows of x; the tiles go first.
    """

    stream: Argument
    q8_blocks: Argument
    out: Argument
    bias: Argument
    rows: Argument
    columns: Argument
    batch: Argument
    tiles: Argument
    adds: Argument
    batch_of_chunk: Argument


class GatedQuantized(NamedTuple):
    """silu(gate x) * (up x) of two packed matrices of a format: q8_blocks (batch, rows / 32), of q8_blocks of x.

    A chunk is 32 rows of the matrices with `batch_of_chunk` rows of x.
    """

    gate: Argument
    up: Argument
    q8_blocks: Argument
    out: Argument
    rows: Argument
    columns: Argument
    batch: Argument
    batch_of_chunk: Argument


class Sizes(NamedTuple):
    """What all layers of a pass share: rows B of `decode_attention`, key/value heads K, query heads of each, head
    size H.

    row_stride, head_stride, slot_stride, page_stride: elements of the cache from one row, head, slot or page to the
    next. page_bits: a page has 2 to this power slots, where rows have page tables. is_tiled: whether keys are in tiles
    (see `key_tiles`). window: tokens that a token sees, its own included. scale: fp32, on the scores. blocks, queries:
    how many blocks of queries there are, and tokens of one, for `prefill_attention`. span: heads of a chunk, for
    `decode_attention`.
    """

    rows: Argument
    heads: Argument
    group: Argument
    width: Argument
    row_stride: Argument
    head_stride: Argument
    slot_stride: Argument
    page_stride: Argument
    page_bits: Argument
    is_tiled: Argument
    window: Argument
    scale: Argument
    blocks: Argument
    queries: Argument
    span: Argument


class Row(NamedTuple):
    """Where a row of a pass stands.

    start: the number of its first new token, counted from its own first; below 0 where that is padding. first: the slot
    of its token 0. table: the address of its page table, int64, or 0. tokens: new ones. offset: the number of the first
    of them among those of the pass. row: its number in the cache. wide: the element where its keys (K, slots, H) begin
    in wide_keys, and its values in wide_values; slots: a multiple of 64, enough for all its tokens.
    """

    start: Argument
    first: Argument
    table: Argument
    tokens: Argument
    offset: Argument
    row: Argument
    wide: Argument
    slots: Argument
