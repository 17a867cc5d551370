"""The cache in prefill attention: store new keys and values, then gather those that the rows see.

Two kernels, with the arguments `Attend`; `prefill_attention` reads what they have made.

1. store: rotate the new queries and keys; keys and values go into the cache. A chunk is a block of queries.
2. gather: copy a row's keys and values from the cache, from its first token on. A chunk is a tile of 64 tokens of a
   key/value head. The version `pairs` is for a cache in bf16 and a processor with bf16 dot products.
"""

from llamita.kernels.cpu import dtype_io as e
from llamita.kernels.cpu import simd as v
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, offsets
from llamita.kernels.cpu.cache_rows import head_of, row_of_entry, slot_of, store_token
from llamita.kernels.cpu.constants import KEYS
from llamita.kernels.cpu.rotary import rotate
from llamita.kernels.cpu.runtime.program import inline, kernel

AT, SIZE, ROW = offsets(Attend), offsets(Sizes), offsets(Row)


@inline
def _store(dtype, at, chunk):
    sizes = v.read(at + AT.sizes)
    row, begin = row_of_entry(at, v.read(at + AT.blocks), chunk)
    heads, group = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.group)
    width, scale = v.read(sizes + SIZE.width), v.read_fp32(sizes + SIZE.scale)
    for token in range(begin, min(begin + v.read(sizes + SIZE.queries), v.read(row + ROW.tokens))):
        number = v.read(row + ROW.offset) + token
        cosines, sines = v.read(at + AT.cosines) + 2 * width * number, v.read(at + AT.sines) + 2 * width * number
        for head in range(heads * group):
            x = v.read(at + AT.q) + 4 * width * (number * heads * group + head)
            rotate(x, cosines, sines, width // 2, scale, e.FP32, x, 0)
        for head in range(heads):
            store_token(dtype, at, row, head, token)


@inline
def _gather(dtype, is_paired, at, chunk):
    sizes = v.read(at + AT.sizes)
    heads, width, stride = v.read(sizes + SIZE.heads), v.read(sizes + SIZE.width), v.read(sizes + SIZE.slot_stride)
    row, first = row_of_entry(at, v.read(at + AT.tiles), chunk // heads)
    head, slots = chunk % heads, v.read(row + ROW.slots)
    filled, start = v.read(row + ROW.start) + v.read(row + ROW.tokens), head_of(sizes, row, head)
    for token in range(first, first + KEYS):
        source = -1
        if token < filled:
            source = start + stride * slot_of(row, sizes, token)
        target = v.read(row + ROW.wide) + (head * slots + token) * width
        for i in range(0, width, 16):
            if is_paired:
                _gather_pairs(at, source, target, token, width, i)
            else:
                key = value = v.zero_fp32()
                if source >= 0:
                    key = e.wide(dtype, v.read(at + AT.keys), source + i)
                    value = e.wide(dtype, v.read(at + AT.values), source + i)
                v.store(v.read(at + AT.wide_keys) + 4 * (target + i), key)
                v.store(v.read(at + AT.wide_values) + 4 * (target + i), value)


@inline
def _gather_pairs(at, source, target, token, width, i):
    """Sixteen columns: of a key as they are; of a value into the low or high halves of a pair of tokens' words."""
    key = value = v.zero_words()
    if source >= 0:
        key = v.load_uint16(v.read(at + AT.keys) + 2 * (source + i))
        value = v.load_uint16(v.read(at + AT.values) + 2 * (source + i))
    v.store_uint16(v.read(at + AT.wide_keys) + 2 * (target + i), key)
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
