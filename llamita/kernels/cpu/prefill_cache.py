"""The cache in prefill attention: store new keys and values, then gather those that the rows see.

Two kernels, with the arguments `Attend`; `prefill_attention` reads what they have made.

1. store: rotate the new queries and keys; keys and values go into the cache. A chunk is a block of queries.
2. gather: copy a row's keys and values from the cache, from its first token on. A chunk is a tile of 64 tokens of a
   key/value head. The version `pairs` is for a cache in bf16 and a processor with bf16 dot products; where the cache
   has tiles of keys, it writes the address of each in the place of its copy.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import fills_tile, head_of, place_of, row_of_entry, store_tile, store_token
from llamita.kernels.cpu.constants import KEYS, TILE
from llamita.kernels.cpu.interleaved import first_pairs, last_pairs, load_half
from llamita.kernels.cpu.key_tiles import read_keys
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)


@inline
def _store(dtype, at, chunk):
    sizes, scratch = v.read(at + AT.sizes), v.stack()
    row, begin = row_of_entry(at, v.read(at + AT.blocks), chunk)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    end = min(begin + v.read(sizes + SIZE.queries), v.read(row + ROW.tokens))
    for token in range(begin, end):
        number = v.read(row + ROW.offset) + token
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        for head in range(heads * group):
            x = v.read(at + AT.q) + 4 * width * (number * heads * group + head)
            rotate(x, cosines, sines, width // 2, scale, e.FP32, x, 0)
    for head in range(heads):
        token = begin
        while token < end:
            if fills_tile(dtype, at, row, token, end):
                store_tile(dtype, at, row, head, token, scratch)
                token += TILE
            else:
                store_token(dtype, at, row, head, token, scratch)
                token += 1


@inline
def _tile_of(at, chunk):
    """Of a chunk: its row, its first token, the elements where its copy and where its head begin, and the row's end."""
    sizes = v.read(at + AT.sizes)
    heads, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width)
    row, first = row_of_entry(at, v.read(at + AT.tiles), chunk // heads)
    head, slots = chunk % heads, v.read(row + ROW.slots)
    target = v.read(row + ROW.wide) + (head * slots + first) * width
    end = v.read(row + ROW.start) + v.read(row + ROW.tokens)
    return row, first, target, head_of(sizes, row, head), end


@inline
def _source_of(at, row, start, token, end):
    """The element where a token of a head is in the cache; -1 from the row's end on."""
    return start + place_of(row, v.read(at + AT.sizes), token) if token < end else -1


@inline
def _gather(dtype, at, chunk):
    """Keys and values in fp32."""
    row, first, target, start, end = _tile_of(at, chunk)
    sizes = v.read(at + AT.sizes)
    width, is_tiled = v.read(sizes + SIZE.width), v.read(sizes + SIZE.is_tiled)
    keys, values = v.read(at + AT.wide_keys) + 4 * target, v.read(at + AT.wide_values) + 4 * target
    if is_tiled:
        for token in range(first, first + KEYS, TILE):
            source = _source_of(at, row, start, token, end)
            _widen_tile(dtype, v.read(at + AT.keys), source, keys + 4 * (token - first) * width, end - token, width)
    for token in range(first, first + KEYS):
        source, to = _source_of(at, row, start, token, end), 4 * (token - first) * width
        for i in range(0, width, 16):
            if not is_tiled:
                _widen(dtype, v.read(at + AT.keys), source, keys + to, i)
            _widen(dtype, v.read(at + AT.values), source, values + to, i)


@inline
def _widen(dtype, x, source, to, i):
    """Sixteen columns of a key or value in fp32; 0 for no source."""
    v.store(to + 4 * i, e.wide(dtype, x, source + i) if source >= 0 else v.zero_fp32())


@inline
def _widen_tile(dtype, x, source, to, count, width):
    """The same of the first `count` keys of a tile; the others are 0."""
    size, lines = e.size(dtype), v.stack()
    columns = 4 // size  # of a word
    for i in range(0, width, 16 * columns):
        words = min(16, (width - i) // columns)
        if count > 0:
            read_keys(x + size * source + 64 * (i // columns), words, lines, lines + 1024)
        for lane in range(TILE):
            for column in range(0, words * columns, 16):
                key = e.wide(dtype, lines + 64 * lane, column) if lane < count else v.zero_fp32()
                v.store(to + 4 * (lane * width + i + column), key)


@inline
def _gather_pairs(at, chunk):
    """Values as pairs of tokens; keys as they are, or the addresses of their tiles."""
    row, first, target, start, end = _tile_of(at, chunk)
    sizes, keys = v.read(at + AT.sizes), v.read(at + AT.keys)
    width, is_tiled = v.read(sizes + SIZE.width), v.read(sizes + SIZE.is_tiled)
    wide_keys, wide_values = v.read(at + AT.wide_keys) + 2 * target, v.read(at + AT.wide_values) + 2 * target
    for token in range(first, first + KEYS, 2):
        one, two = _source_of(at, row, start, token, end), _source_of(at, row, start, token + 1, end)
        to = 2 * (token - first) * width
        _join(v.read(at + AT.values), one, two, wide_values + to, width)
        if not is_tiled:
            _copy(keys, one, wide_keys + to, width)
            _copy(keys, two, wide_keys + to + 2 * width, width)
        elif token % TILE == 0:
            v.write(wide_keys + to, keys + 2 * max(0, one))


@inline
def _join(x, one, two, to, width):
    """Two values as pairs, one of each in a word; 0 for no source."""
    for i in range(0, width, 32):
        is_half = width - i < 32
        a, b = _columns_of(x, one, i, is_half), _columns_of(x, two, i, is_half)
        v.store_words(to + 4 * i, first_pairs(a, b))
        if not is_half:
            v.store_words(to + 4 * i + 64, last_pairs(a, b))


@inline
def _columns_of(x, source, i, is_half):
    """32 columns, or sixteen, from the i-th on."""
    if source < 0:
        return v.zero_words()
    return load_half(x + 2 * (source + i)) if is_half else v.load_words(x + 2 * (source + i))


@inline
def _copy(x, source, to, width):
    """A key as it is; 0 for no source."""
    for i in range(0, width, 16):
        v.store_uint16(to + 2 * i, v.load_uint16(x + 2 * (source + i)) if source >= 0 else v.zero_words())


@kernel
def store_fp32(at: int, chunk: int) -> None:
    """Into a cache in fp32."""
    _store(e.FP32, at, chunk)


@kernel
def store_fp16(at: int, chunk: int) -> None:
    """Into a cache in fp16."""
    _store(e.FP16, at, chunk)


@kernel
def store_bf16(at: int, chunk: int) -> None:
    """Into a cache in bf16."""
    _store(e.BF16, at, chunk)


@kernel
def gather_fp32(at: int, chunk: int) -> None:
    """From a cache in fp32, to fp32."""
    _gather(e.FP32, at, chunk)


@kernel
def gather_fp16(at: int, chunk: int) -> None:
    """From a cache in fp16, to fp32."""
    _gather(e.FP16, at, chunk)


@kernel
def gather_bf16(at: int, chunk: int) -> None:
    """From a cache in bf16, to fp32."""
    _gather(e.BF16, at, chunk)


@kernel
def gather_pairs(at: int, chunk: int) -> None:
    """From a cache in bf16: values as pairs of tokens; keys as they are, or the addresses of their tiles."""
    _gather_pairs(at, chunk)
