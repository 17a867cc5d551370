"""Keys in tiles of sixteen tokens, transposed: a lane is a key, so no sum of a score crosses lanes.

A tile has words of four bytes (n, 16): in fp32 a column each, of two bytes a pair of columns. A cache of blocks of
sixteen slots or more stores its keys so, a tile where sixteen keys (16, H) would be; those of other caches are
transposed while they are read. Scores add two products at a time, the second first, as `simd.dot_bf16` does.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.constants import TILE
from llamita.kernels.cpu.runtime.program import inline
from llamita.kernels.cpu.weighted_values import Ahead, fetch

LINE = 4 * TILE  # bytes of a word of all keys
Four = tuple[int, int, int, int]


@inline
def put_key(dtype: int, key: int, tile: int, lane: int, width: int) -> None:
    """Put a key (H,) into its lane of a tile."""
    for i in range(width * e.size(dtype) // 4):
        v.write_fp32(tile + LINE * i + 4 * lane, v.read_fp32(key + 4 * i))


@inline
def put_keys(keys: int, stride: int, tile: int, words: int) -> None:
    """Put sixteen keys, `stride` bytes apart, into a tile; a multiple of sixteen words."""
    for i in range(0, words, TILE):
        v.transpose(keys + 4 * i, stride, tile + LINE * i)


@inline
def read_keys(tile: int, words: int, to: int, lines: int) -> None:
    """Up to sixteen words of each key of a tile, as sixteen lines of 64 bytes. lines: 1 KB to work in."""
    if words >= TILE:
        v.transpose(tile, LINE, to)
        return
    for line in range(TILE):
        v.store(lines + LINE * line, v.load(tile + LINE * line) if line < words else v.zero_fp32())
    v.transpose(lines, LINE, to)


@inline
def transpose_keys(
    dtype: int,
    is_paired: bool,
    keys: int,
    stride: int,
    offsets: int,
    is_line: bool,
    width: int,
    to: int,
    scratch: int,
) -> None:
    """Sixteen keys by their offsets in bytes, as a tile of pairs, or of columns in fp32. One at an offset below 0 is 0.

    is_line: whether the keys are `stride` bytes apart.
    """
    columns = 2 if is_paired else 1  # of a word
    size, is_direct = e.size(dtype), is_line and v.read(offsets + 120) >= 0 and (is_paired or dtype == e.FP32)
    for i in range(0, width, 16 * columns):
        words = min(16, (width - i) // columns)
        if is_direct and words == 16:
            v.transpose(keys + v.read(offsets) + size * i, stride, to + 64 * (i // columns))
            continue
        for lane in range(16):
            offset, line = v.read(offsets + 8 * lane), scratch + 64 * lane
            if offset < 0:
                v.store(line, v.zero_fp32())
            elif is_paired or dtype == e.FP32:
                v.store(line, v.load_some(keys + offset + size * i, words))
            else:
                v.store(line, e.wide(dtype, keys + offset, i))
        v.transpose(scratch, 64, to + 64 * (i // columns))


@inline
def score(
    dtype: int, is_paired: bool, q: int, tiles: Four, width: int, fetches: bool, ahead: Ahead
) -> tuple[v.Vector, v.Vector, v.Vector, v.Vector]:
    """One query, in pairs of bf16 or in fp32, with four tiles. ahead: what to prefetch, if it is to."""
    a = b = c = d = v.zero_fp32()
    if is_paired:
        for i in range(width // 2):
            if fetches:
                fetch(ahead, i, i + 1)
            word, at = v.broadcast_word(q + 4 * i), LINE * i
            a, b = v.dot_bf16(a, v.load_words(tiles[0] + at), word), v.dot_bf16(b, v.load_words(tiles[1] + at), word)
            c, d = v.dot_bf16(c, v.load_words(tiles[2] + at), word), v.dot_bf16(d, v.load_words(tiles[3] + at), word)
        return a, b, c, d
    for pair in range(0, width, 2):
        if fetches:
            fetch(ahead, pair // 2, pair // 2 + 1)
        a, b, c, d = _add_column(dtype, q, tiles, pair, 1, (a, b, c, d))
        a, b, c, d = _add_column(dtype, q, tiles, pair, 0, (a, b, c, d))
    return a, b, c, d


@inline
def _add_column(dtype, q, tiles, pair, second, sums):
    """The product of one column, the first of a pair or the second, added to four sums."""
    x = v.broadcast(v.read_fp32(q + 4 * (pair + second)))
    a = v.fma(_keys(dtype, tiles[0], pair, second), x, sums[0])
    b = v.fma(_keys(dtype, tiles[1], pair, second), x, sums[1])
    c = v.fma(_keys(dtype, tiles[2], pair, second), x, sums[2])
    d = v.fma(_keys(dtype, tiles[3], pair, second), x, sums[3])
    return a, b, c, d


@inline
def _keys(dtype, tile, pair, second):
    """A column of all keys of a tile in fp32."""
    if dtype == e.FP32:
        return v.load(tile + LINE * (pair + second))
    words = v.load_words(tile + LINE // 2 * pair)
    if dtype == e.BF16:
        return v.high_bf16(words) if second else v.low_bf16(words)
    return v.high_fp16(words) if second else v.low_fp16(words)
