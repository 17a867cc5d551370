"""The cache in prefill attention: store new keys and values, then gather those that the rows see.

Two kernels, with the arguments `Attend`; `prefill_attention` reads what they have made.

1. store: rotate the new queries and keys; keys and values go into the cache. A chunk is a block of queries.
2. gather: copy a row's keys and values from the cache, from its first token on. A chunk is a tile of 64 tokens of a
   key/value head. The version `pairs` is for a cache in bf16 and a processor with bf16 dot products.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import fills_tile, head_of, place_of, row_of_entry, store_tile, store_token
from llamita.kernels.cpu.constants import KEYS, TILE
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
def _gather(dtype, is_paired, at, chunk):
    sizes = v.read(at + AT.sizes)
    heads, width = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width)
    row, first = row_of_entry(at, v.read(at + AT.tiles), chunk // heads)
    head, slots = chunk % heads, v.read(row + ROW.slots)
    filled, start = v.read(row + ROW.start) + v.read(row + ROW.tokens), head_of(sizes, row, head)
    target, is_tiled = v.read(row + ROW.wide) + (head * slots + first) * width, v.read(sizes + SIZE.is_tiled)
    if is_tiled:
        for token in range(first, first + KEYS, TILE):
            count = min(TILE, filled - token)
            source = start + place_of(row, sizes, token) if count > 0 else 0
            _gather_tile(dtype, is_paired, at, source, target + (token - first) * width, count, width)
    for token in range(first, first + KEYS):
        source = start + place_of(row, sizes, token) if token < filled else -1
        to = target + (token - first) * width
        for i in range(0, width, 16):
            if not is_tiled:
                _gather_key(dtype, is_paired, at, source, to, i)
            _gather_value(dtype, is_paired, at, source, to, token, width, i)


@inline
def _gather_key(dtype, is_paired, at, source, target, i):
    """Sixteen columns of a key: in pairs as they are, else in fp32; 0 for no source."""
    if is_paired:
        words = v.load_uint16(v.read(at + AT.keys) + 2 * (source + i)) if source >= 0 else v.zero_words()
        v.store_uint16(v.read(at + AT.wide_keys) + 2 * (target + i), words)
    else:
        key = e.wide(dtype, v.read(at + AT.keys), source + i) if source >= 0 else v.zero_fp32()
        v.store(v.read(at + AT.wide_keys) + 4 * (target + i), key)


@inline
def _gather_tile(dtype, is_paired, at, source, target, count, width):
    """The same of the first `count` keys of a tile; the others are 0."""
    size, lines = e.size(dtype), v.stack()
    columns = 4 // size  # of a word
    for i in range(0, width, 16 * columns):
        words = min(16, (width - i) // columns)
        if count > 0:
            tile = v.read(at + AT.keys) + size * source + 64 * (i // columns)
            read_keys(tile, words, lines, lines + 1024)
        for lane in range(TILE):
            if is_paired and words == TILE:
                pairs = v.load_words(lines + 64 * lane) if lane < count else v.zero_words()
                v.store_words(v.read(at + AT.wide_keys) + 2 * (target + lane * width + i), pairs)
                continue
            for column in range(0, words * columns, 16):
                line, to = lines + 64 * lane + size * column, target + lane * width + i + column
                if is_paired:
                    pairs = v.load_uint16(line) if lane < count else v.zero_words()
                    v.store_uint16(v.read(at + AT.wide_keys) + 2 * to, pairs)
                else:
                    key = e.wide(dtype, line, 0) if lane < count else v.zero_fp32()
                    v.store(v.read(at + AT.wide_keys) + 4 * to, key)


@inline
def _gather_value(dtype, is_paired, at, source, target, token, width, i):
    """Sixteen columns of a value: in fp32, or in pairs into the low or high halves of a pair of tokens' words."""
    if not is_paired:
        value = e.wide(dtype, v.read(at + AT.values), source + i) if source >= 0 else v.zero_fp32()
        v.store(v.read(at + AT.wide_values) + 4 * (target + i), value)
        return
    value = v.load_uint16(v.read(at + AT.values) + 2 * (source + i)) if source >= 0 else v.zero_words()
    word = v.read(at + AT.wide_values) + 2 * (target - token % 2 * width) + 4 * i
    if token % 2:
        value = v.or_words(v.load_words(word), v.shl(value, 16))
    v.store_words(word, value)


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
    _gather(e.FP32, False, at, chunk)


@kernel
def gather_fp16(at: int, chunk: int) -> None:
    """From a cache in fp16, to fp32."""
    _gather(e.FP16, False, at, chunk)


@kernel
def gather_bf16(at: int, chunk: int) -> None:
    """From a cache in bf16, to fp32."""
    _gather(e.BF16, False, at, chunk)


@kernel
def gather_pairs(at: int, chunk: int) -> None:
    """From a cache in bf16: keys as they are, and values as pairs of tokens."""
    _gather(e.BF16, True, at, chunk)
