"""The attention kernels of a pass, by segments of rows: the only kernels that know caches and positions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.context.batch import BatchLayout
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.arguments import Attend, Sizes, bits
from llamita.kernels.cpu.constants import DTYPES, KEYS, Q8_BLOCK, QUERIES
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.plans.cpu.workspace import Workspace, empty, numbers

DECODE = {dtype: named("decode_attention", f"attend_{name}") for dtype, name in DTYPES.items()}
STORE = {dtype: named("prefill_attention", f"store_{name}") for dtype, name in DTYPES.items()}
SPREAD = {dtype: named("prefill_attention", f"spread_{name}") for dtype, name in DTYPES.items()}
PREFILL = {torch.float32: named("prefill_attention", "prefill_fp32")}
PREFILL |= {torch.float16: PREFILL[torch.float32], torch.bfloat16: named("prefill_attention", "prefill_bf16")}
DECODE_PAIRS = named("decode_attention", "attend_pairs")
SPREAD_PAIRS, PREFILL_PAIRS = named("prefill_attention", "spread_pairs"), named("prefill_attention", "prefill_pairs")
SIZE = Sizes(*range(len(Sizes._fields)))  # where each stands
Buffers = Sequence[tuple[Tensor, Tensor]]
FEW_QUERIES = 8  # tokens of a row up to which the kernel for decoding is the faster


class Segment(NamedTuple):
    """Rows of a pass that have as many new tokens each: B rows of T tokens."""

    rows: int
    tokens: int


class Activations(NamedTuple):
    """The input of products: fp32 (rows, K), and the same in bf16 or as q8_blocks where a product needs that."""

    floats: Tensor
    halves: Tensor | None
    q8_blocks: Tensor | None

    def of_rows(self, start: int, end: int) -> "Activations":
        """Those of some rows."""
        size = self.floats.shape[1] // 32 * Q8_BLOCK
        return Activations(
            self.floats[start:end],
            None if self.halves is None else self.halves[start:end],
            None if self.q8_blocks is None else self.q8_blocks[start * size : end * size],
        )


class SegmentAttention:
    """The attention kernels of one segment, in all layers of a program.

    first: the number of its first token among those of the pass, `count` of which are its own. positions: int64 of all
    tokens of the pass, whose part it writes.
    """

    def __init__(
        self,
        config: LlamaConfig,
        workspace: Workspace,
        program: Program,
        segment: Segment,
        *,
        first: int,
        positions: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self._workspace, self._program, self._dtype = workspace, program, dtype
        self.segment, self.first, self.count = segment, first, segment.rows * segment.tokens
        self._heads, self._width = config.num_key_value_heads, config.head_dim
        self._group = config.num_attention_heads // self._heads
        self._is_paired = dtype == torch.bfloat16 and multiplies_pairs()
        self._rows = empty(segment.rows, 4, dtype=torch.int64).zero_()  # a `Row` of each
        mine = positions[first : first + self.count].numpy().reshape(segment)
        self._standing, self._positions = self._rows.numpy(), mine
        self._steps, self._numbers = np.arange(segment.tokens), np.arange(segment.rows)
        window, scale = config.sliding_window or 1 << 30, bits(config.softmax_scale)
        sizes = Sizes(
            tokens=segment.tokens, heads=self._heads, group=self._group, width=self._width, row_stride=0,
            head_stride=0, slot_stride=self._width, page_bits=0, window=window, scale=scale, wide=0, rows=segment.rows,
        )  # fmt: skip
        self._sizes = numbers(*sizes)
        self._calls: list[int] = []
        self._spreads: list[int] = []
        self._wide_at = 0  # the address of the buffers that the program knows
        self._known: Callable[[], Tensor | None] = lambda: None  # keys that the program knows; they may go

    def add(self, q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor], out: Activations) -> None:
        """Add the kernels of a layer: q (rows, N * H), k and v (rows, K * H), cosines and sines, of the whole pass."""
        end = self.first + self.count
        q, k, v, cosines, sines = (x[self.first : end] for x in (q, k, v, *angles))
        mine = out.of_rows(self.first, end)
        arguments = Attend(q, k, v, cosines, sines, None, None, self._rows, mine.floats, self._sizes, *[None] * 4)
        if self.segment.tokens <= FEW_QUERIES:
            is_rounded = mine.q8_blocks is None or self._group * self._width % 32 == 0
            if is_rounded:
                arguments = arguments._replace(halves=mine.halves, q8_blocks=mine.q8_blocks)
            kernel = DECODE_PAIRS if self._is_paired else DECODE[self._dtype]
            self._calls.append(self._program.add(kernel, arguments, chunks=self.segment.rows * self._heads))
            if is_rounded:
                return
        else:
            self._prefill(arguments)
        if mine.halves is not None or mine.q8_blocks is not None:
            linear.add_round(self._program, mine.floats, halves=mine.halves, q8_blocks=mine.q8_blocks)

    def _prefill(self, arguments: Attend) -> None:
        """The kernels for many tokens."""
        spread, attend, queries = SPREAD[self._dtype], PREFILL[self._dtype], 16
        if self._is_paired:
            spread, attend, queries = SPREAD_PAIRS, PREFILL_PAIRS, QUERIES
        rows, tokens = self.segment
        calls = [
            self._program.add(STORE[self._dtype], arguments, chunks=rows * tokens),
            self._program.add(spread, arguments),
            self._program.add(attend, arguments, chunks=rows * self._heads * self._group * -(-tokens // queries)),
        ]
        self._calls += calls
        self._spreads.append(calls[1])

    def stand(self, layout: BatchLayout) -> None:
        """Write the positions and slots of the new tokens, for the kernels."""
        standing = self._standing
        standing[:, 0], standing[:, 1], standing[:, 2] = _values(layout.start), _values(layout.first), 0
        if layout.tables is not None and layout.origin is not None:
            self._tables, entries = layout.tables, layout.tables.shape[1]
            begin = self._numbers * entries + _values(layout.origin)
            standing[:, 2] = layout.tables.data_ptr() + 8 * begin
            self._sizes[SIZE.page_bits] = layout.page_size.bit_length() - 1
        np.add(standing[:, :1], self._steps, out=self._positions)
        if isinstance(layout.start, Tensor) and standing[:, 0].min() < 0:
            np.maximum(self._positions, 0, out=self._positions)
        if self._spreads:
            self._widen(-(-(int(standing[:, 0].max()) + self.segment.tokens) // KEYS) * KEYS)

    def _widen(self, slots: int) -> None:
        """Allocate the buffers into which `prefill_attention` copies keys and values of the cache."""
        heads = self.segment.rows * self._heads
        wide = [self._workspace.buffer(f"wide {name}", heads, slots, self._width) for name in ("keys", "values")]
        if slots == int(self._sizes[SIZE.wide]) and self._wide_at == wide[0].data_ptr():
            return
        self._sizes[SIZE.wide], self._wide, self._wide_at = slots, wide, wide[0].data_ptr()
        for number in self._calls:
            self._program.change(number, wide_keys=wide[0], wide_values=wide[1])
        for number in self._spreads:
            self._program.change(number, chunks=heads * slots // KEYS)

    def move(self, buffers: Buffers) -> None:
        """Put the buffers' addresses into the program if they have changed; those of all layers change at once."""
        if buffers[0][0] is self._known():
            return
        rows, heads, capacity, width = buffers[0][0].shape
        assert all(x.shape[2] == capacity and x.dtype == self._dtype for layer in buffers for x in layer)
        self._sizes[SIZE.row_stride] = 0 if rows == 1 else heads * capacity * width
        self._sizes[SIZE.head_stride] = capacity * width
        calls = len(self._calls) // len(buffers)  # of a layer
        for layer, (keys, values) in enumerate(buffers):
            for number in self._calls[layer * calls : (layer + 1) * calls]:
                self._program.change(number, keys=keys, values=values)
        self._known = ref(buffers[0][0])


def _values(numbers: Tensor | int) -> np.ndarray | int:
    """Numbers for NumPy, whose calls cost less than torch's: a pass makes several for every segment."""
    return numbers.numpy() if isinstance(numbers, Tensor) else numbers


def multiplies_pairs() -> bool:
    """Whether kernels may use the bf16 dot product instruction, which adds in pairs."""
    from llamita.kernels.cpu import isa  # it imports LLVM, which only kernels need

    return isa.has("avx512bf16")
