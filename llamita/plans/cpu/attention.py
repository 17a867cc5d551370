"""The attention kernels of a pass over rows of any lengths: the only kernels that know caches and positions."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.context.batch import BatchLayout, Numbers
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.arguments import Attend, Row, Sizes, bits
from llamita.kernels.cpu.constants import DTYPES, KEYS, QUERIES
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.plans.cpu.workspace import Workspace, empty, numbers

DECODE = {dtype: named("decode_attention", f"attend_{name}") for dtype, name in DTYPES.items()}
STORE = {dtype: named("prefill_cache", f"store_{name}") for dtype, name in DTYPES.items()}
GATHER = {dtype: named("prefill_cache", f"gather_{name}") for dtype, name in DTYPES.items()}
PREFILL = {torch.float32: named("prefill_attention", "prefill_fp32")}
PREFILL |= {torch.float16: PREFILL[torch.float32], torch.bfloat16: named("prefill_attention", "prefill_bf16")}
DECODE_PAIRS = named("decode_attention", "attend_pairs")
GATHER_PAIRS, PREFILL_PAIRS = named("prefill_cache", "gather_pairs"), named("prefill_attention", "prefill_pairs")
SIZE, ROW = Sizes(*range(len(Sizes._fields))), Row(*range(len(Row._fields)))  # the column of each field
Buffers = Sequence[tuple[Tensor, Tensor]]
MOST_QUERIES = 16  # that `decode_attention` works on at once
SHARES = 8  # a chunk of it is at most this part of what a thread has to do, so that threads end together
FEW_QUERIES = 8  # tokens of a row up to which the kernel for decoding is the faster


class Activations(NamedTuple):
    """The input of products: fp32 (rows, K), and the same in bf16 or as q8_blocks where a product needs that."""

    floats: Tensor
    halves: Tensor | None
    q8_blocks: Tensor | None


class Calls:
    """The calls of one kernel, one in each layer, which all have as many chunks."""

    def __init__(self, program: Program) -> None:
        self._program, self.numbers, self._chunks = program, list[int](), 0

    def repeat(self, layer: int, shift: int) -> None:
        """Count the call of one more layer, which repeats that of this layer."""
        if self.numbers:
            self.numbers.append(self.numbers[layer] + shift)

    def resize(self, chunks: int) -> None:
        """Let each have this number of chunks."""
        if chunks != self._chunks:
            self._chunks = chunks
            self._program.resize(self.numbers, chunks)


class RaggedAttention:
    """The attention kernels of a pass of T tokens, in all layers of a program, whatever rows these are of.

    Rows of few new tokens go to `decode_attention`, the others to `prefill_attention`. Where rows see what others write
    in the same pass, each level has one of these. positions: int64 (T,), which it writes for its rows' tokens.
    """

    def __init__(
        self,
        config: LlamaConfig,
        workspace: Workspace,
        program: Program,
        *,
        positions: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._workspace, self._program, self._dtype = workspace, program, dtype
        self._heads, self._width = config.num_key_value_heads, config.head_dim
        self._group = config.num_attention_heads // self._heads
        self._few, self._most = 0, 1
        self._is_paired = dtype == torch.bfloat16 and multiplies_pairs()
        self._queries = QUERIES if self._is_paired else 16  # of a block
        self._positions, self._tokens = positions.numpy(), len(positions)
        self._rows = empty(self._tokens, len(Row._fields), dtype=torch.int64).zero_()  # a `Row` of each
        self._blocks = empty(self._tokens, 2, dtype=torch.int64)
        self._spans: tuple[Sequence[int], Sequence[int]] | None = None
        self._page: tuple[int, bool] | None = None  # the size of pages, and whether they are blocks
        self._order: list[int] | None = None  # of the rows, where it is not theirs
        self._new: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # row, number in it, number of each token
        self._window, scale = config.sliding_window or 1 << 30, bits(config.softmax_scale)
        sizes = Sizes(
            rows=0, heads=self._heads, group=self._group, width=self._width, row_stride=0, head_stride=0,
            slot_stride=self._width, page_stride=0, page_bits=0, is_tiled=0, window=self._window, scale=scale, blocks=0,
            queries=self._queries, span=1,
        )  # fmt: skip
        self._sizes = numbers(*sizes)
        self._size_numbers = self._sizes.numpy()
        self._decode, self._store, self._gather, self._prefill = (Calls(program) for _ in range(4))
        self._tiles = empty(0, 2, dtype=torch.int64)
        self._wide: list[Tensor] = []  # the buffers whose addresses are in the program
        self._keys: Callable[[], Tensor | None] = lambda: None  # whose addresses are in the program; a weak reference

    def add(self, q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor], out: Activations) -> None:
        """Add the kernels of a layer: q (T, N * H), k and v (T, K * H), cosines and sines."""
        is_rounded = out.q8_blocks is None or self._width % 32 == 0
        rounded = (out.halves, out.q8_blocks) if is_rounded else (None, None)
        arguments = Attend(
            q, k, v, *angles, None, None, self._rows, out.floats, self._sizes, *rounded, self._blocks, None, None, None
        )
        kernels = [(self._decode, DECODE[self._dtype], DECODE_PAIRS)]
        if self._tokens > FEW_QUERIES:
            kernels += [
                (self._store, STORE[self._dtype], STORE[self._dtype]),
                (self._gather, GATHER[self._dtype], GATHER_PAIRS),
                (self._prefill, PREFILL[self._dtype], PREFILL_PAIRS),
            ]
        for calls, plain, paired in kernels:
            kernel = paired if self._is_paired else plain
            calls.numbers.append(self._program.add(kernel, arguments, chunks=0, concurrent=calls is self._store))
        if not is_rounded:
            linear.add_round(self._program, out.floats, halves=out.halves, q8_blocks=out.q8_blocks)

    def repeat(self, layer: int, shift: int) -> None:
        """Take note of one more layer, whose calls repeat those of this layer."""
        for calls in (self._decode, self._store, self._gather, self._prefill):
            calls.repeat(layer, shift)

    def write_rows(self, layout: BatchLayout, rows: int, tokens: int) -> None:
        """Write a `Row` for each row of the pass. rows, tokens: B and T, where the layout has no spans."""
        spans = layout.spans or ((tokens,) * rows, range(0, rows * tokens, tokens))
        if spans != self._spans:
            self._spans = spans
            self._divide(*map(np.array, spans))
        starts = self._sorted(layout.start)
        self._starts[:], self._firsts[:] = starts, self._sorted(layout.first)
        self._pages[:], self._tables = self._addresses(layout), layout.tables
        if self._page != (layout.page_size, layout.is_blocked):
            self._page = size, is_blocked = layout.page_size, layout.is_blocked
            self._size_numbers[SIZE.page_bits] = size.bit_length() - 1
            self._size_numbers[SIZE.page_stride] = size * self._width * (self._heads if is_blocked else 1)
        self._set_span([starts] * self._few if isinstance(starts, int) else starts[: self._few])
        self._write_positions()
        if self._few < len(self._written):
            self._list_tiles(self._written[self._few :])

    def _addresses(self, layout: BatchLayout) -> Sequence[int] | int:
        """Where the page table of each row begins; 0 where there is none."""
        if layout.tables is None:
            return 0
        if not isinstance(layout.tables, np.ndarray):
            return self._sorted([table.buffer_info()[0] for table in layout.tables])
        start, origin = layout.tables.__array_interface__["data"][0], self._sorted(layout.origin)
        return start + 8 * origin if isinstance(origin, int) else [start + 8 * one for one in origin]

    def _write_positions(self) -> None:
        """Write the position of each new token; below 0 is padding, which gets 0."""
        if self._new is None:
            np.maximum(self._starts, 0, out=self._positions)
        else:
            row, step, number = self._new
            self._positions[number] = np.maximum(self._starts[row] + step, 0)

    def _set_span(self, starts: Sequence[int]) -> None:
        """Give a chunk of `decode_attention` many heads, as these lie together, within `SHARES`.

        starts: of the rows of few new tokens.
        """
        parts = self._heads
        if starts and self._size_numbers[SIZE.is_tiled]:
            longest, all_seen = max(starts) + 1, sum(starts) + len(starts)
            if longest > self._window:
                longest, all_seen = self._window, sum(min(start + 1, self._window) for start in starts)
            least = longest * SHARES * torch.get_num_threads() / all_seen
            most = MOST_QUERIES // (self._group * self._most)  # heads of a part
            parts = min(self._heads, max(ceil(least), -(-self._heads // max(1, most))))
        span = -(-self._heads // parts)
        self._size_numbers[SIZE.span] = span
        self._decode.resize(len(starts) * -(-self._heads // span))

    def _sorted(self, numbers: Numbers) -> Numbers:
        """Numbers of the rows in the order of the kernels."""
        if self._order is None or isinstance(numbers, int):
            return numbers
        return [numbers[row] for row in self._order]

    def _divide(self, counts: np.ndarray, offsets: np.ndarray) -> None:
        """Give each kernel its rows, those of few new tokens first: these counts of them, from these numbers on."""
        is_few = counts <= FEW_QUERIES
        self._few = few = int(is_few.sum())
        order = np.argsort(~is_few, kind="stable") if 0 < few < len(counts) else np.arange(len(counts))
        self._order = order.tolist() if 0 < few < len(counts) else None
        self._written = written = self._rows.numpy()[: len(counts)]
        written[:, ROW.row] = order
        written[:, ROW.tokens], written[:, ROW.offset] = counts, offsets = counts[order], offsets[order]
        self._starts, self._firsts, self._pages = (written[:, one] for one in (ROW.start, ROW.first, ROW.table))
        self._new = None  # each has one
        if len(counts) < self._tokens:
            row = np.repeat(np.arange(len(counts)), counts)  # of each new token
            step = np.arange(len(row)) - (counts.cumsum() - counts)[row]
            self._new = row, step, offsets[row] + step
        self._size_numbers[SIZE.rows] = few
        self._most = int(counts[:few].max(initial=1))  # new tokens of such a row
        if self._prefill.numbers:
            self._list_blocks(counts[few:])

    def _list_blocks(self, counts: np.ndarray) -> None:
        """List the blocks of queries of the rows of many new tokens."""
        blocks = _entries(counts, self._queries, self._few)
        self._blocks.numpy()[: len(blocks)], self._size_numbers[SIZE.blocks] = blocks, len(blocks)
        self._store.resize(len(blocks))
        self._prefill.resize(len(blocks) * self._heads * self._group)
        self._gather.resize(0)

    def _list_tiles(self, many: np.ndarray) -> None:
        """List the tiles of keys that the rows of many new tokens see."""
        slots = np.maximum(-(-(many[:, ROW.start] + many[:, ROW.tokens]) // KEYS) * KEYS, 0)
        sizes = slots * self._heads * self._width
        many[:, ROW.slots], many[:, ROW.wide] = slots, sizes.cumsum() - sizes
        tiles = _entries(slots, KEYS, self._few)
        self._gather.resize(len(tiles) * self._heads)
        if len(tiles):
            self._widen(tiles, int(sizes.sum()))

    def _widen(self, tiles: np.ndarray, size: int) -> None:
        """Write the tiles, and allocate the buffers into which keys and values of the cache are copied."""
        if len(self._tiles) < len(tiles):
            self._tiles = empty(2 * len(tiles), 2, dtype=torch.int64)
        self._tiles[: len(tiles)] = torch.from_numpy(tiles)
        needed = [self._tiles, *(self._workspace.buffer(f"wide {name}", size) for name in ("keys", "values"))]
        if [one.data_ptr() for one in needed] == [one.data_ptr() for one in self._wide]:
            return
        self._wide = needed
        listed, keys, values = map(Tensor.data_ptr, needed)
        calls = [*self._gather.numbers, *self._prefill.numbers]
        self._program.change_each(calls, tiles=listed, wide_keys=keys, wide_values=values)

    def set_buffers(self, buffers: Buffers, layout: BatchLayout) -> None:
        """Put the buffers' addresses into the program if they have changed; those of all layers change at once.

        layout: of a pass over these buffers; all such layouts say the same of blocks and tiles.
        """
        if buffers[0][0] is self._keys():
            return
        rows, heads, capacity, width = buffers[0][0].shape
        assert all(x.shape[2] == capacity and x.dtype == self._dtype for layer in buffers for x in layer)
        self._size_numbers[SIZE.row_stride] = 0 if rows == 1 or layout.is_blocked else heads * capacity * width
        self._size_numbers[SIZE.head_stride] = capacity * width
        self._size_numbers[SIZE.is_tiled] = layout.is_tiled
        keys, values = ([one.data_ptr() for one in each] for each in zip(*buffers, strict=True))
        for calls in (self._decode, self._store, self._gather, self._prefill):
            if calls.numbers:
                self._program.change_each(calls.numbers, keys=keys, values=values)
        self._keys = ref(buffers[0][0])


def _entries(lengths: np.ndarray, step: int, first: int) -> np.ndarray:
    """Rows, numbered from `first` on, of these lengths, in pieces of `step`: of each the row, and where it begins."""
    pieces = [(first + row, begin) for row, length in enumerate(lengths.tolist()) for begin in range(0, length, step)]
    return np.array(pieces, dtype=np.int64).reshape(-1, 2)


def multiplies_pairs() -> bool:
    """Whether kernels may use the bf16 dot product instruction, which adds in pairs."""
    from llamita.kernels.cpu import isa  # it imports LLVM, which only kernels need

    return isa.has("avx512bf16")
