"""New tokens of some rows over a cache, and what reference.attention and the kernels make of them."""

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.config import LlamaConfig
from llamita.kernels import reference
from llamita.kernels.cpu import decode_attention, isa, prefill_attention, prefill_cache
from llamita.kernels.cpu.arguments import Attend
from llamita.kernels.cpu.constants import KEYS, QUERIES, TILE
from tests.unit.kernels.cpu.launch import DTYPES, call

DECODE = dict(
    zip(DTYPES, (decode_attention.attend_fp32, decode_attention.attend_bf16, decode_attention.attend_fp16), strict=True)
)
p, c = prefill_attention, prefill_cache
STORE = dict(zip(DTYPES, (c.store_fp32, c.store_bf16, c.store_fp16), strict=True))
GATHER = dict(zip(DTYPES, (c.gather_fp32, c.gather_bf16, c.gather_fp16), strict=True))
PREFILL = dict(zip(DTYPES, (p.prefill_fp32, p.prefill_bf16, p.prefill_fp32), strict=True))
HAS_PAIRS = isa.has("avx512bf16")


class Case:
    """B rows of T new tokens each; `starts` of the rows' own tokens stand before them in the cache.

    page: 0 for a cache of one slot behind the other, else the slots of a page, a power of two. is_blocked: whether
    pages are blocks as `PagedCache` has them. span: key/value heads of a chunk.
    """

    def __init__(
        self,
        starts: list[int],
        tokens: int = 1,
        *,
        heads: int = 6,
        keyed: int = 2,
        width: int = 48,
        dtype: torch.dtype = torch.bfloat16,
        window: int = 1 << 30,
        page: int = 0,
        is_blocked: bool = False,
        span: int = 1,
    ) -> None:
        self.starts, self.tokens, self.dtype, self.window, self.page = starts, tokens, dtype, window, page
        self.is_blocked, self.span = is_blocked, span
        self.heads, self.keyed, self.width, batch = heads, keyed, width, len(starts)
        self.q = torch.randn(batch, tokens, heads, width)
        self.k, self.v = torch.randn(2, batch, tokens, keyed, width)
        self.scale = 0.3
        positions = torch.tensor(starts)[:, None] + torch.arange(tokens)
        frequencies = 100 ** -(torch.arange(width // 2) / (width // 2))
        self.angles = reference.angles(positions.clamp(min=0), frequencies, 1.0)
        self.before = [torch.randn(2, max(0, start), keyed, width).to(dtype) for start in starts]

    def expected(self) -> Tensor:
        """The reference's (B, T, N, H)."""
        return torch.stack([self._row(row) for row in range(len(self.starts))])

    def _row(self, row: int) -> Tensor:
        cosines, sines = (x[row : row + 1] for x in self.angles)
        q = reference.rotate(self.q[row : row + 1], cosines, sines, self.scale)[0]
        new = reference.rotate(self.k[row : row + 1], cosines, sines)[0], self.v[row]
        padding = max(0, -self.starts[row])  # new tokens that are none
        both = [torch.cat((old, x[padding:].to(self.dtype))) for old, x in zip(self.before[row], new, strict=True)]
        positions = self.starts[row] + torch.arange(self.tokens)
        return reference.attention(q, *both, positions=positions, window=self.window)

    def decoded(self, *, is_paired: bool = False, threads: int = 1) -> Tensor:
        """What decode_attention makes of it."""
        arguments, out = self._arguments()
        kernel = decode_attention.attend_pairs if is_paired else DECODE[self.dtype]
        call(kernel, arguments, chunks=len(self.starts) * -(-self.keyed // self.span), threads=threads)
        return out

    def prefilled(self, *, is_paired: bool = False, threads: int = 1) -> Tensor:
        """What prefill_attention makes of it."""
        arguments, out = self._arguments()
        gather, attend, queries = GATHER[self.dtype], PREFILL[self.dtype], 16
        if is_paired:
            gather, attend, queries = c.gather_pairs, p.prefill_pairs, QUERIES
        batch = range(len(self.starts))
        blocks = torch.tensor([[row, begin] for row in batch for begin in range(0, self.tokens, queries)])
        tiles = torch.tensor([[row, first] for row in batch for first in range(0, self._slots(row), KEYS)])
        sizes = torch.cat((arguments.sizes[:12], torch.tensor([len(blocks), queries, 1])))
        arguments = arguments._replace(blocks=blocks, tiles=tiles, sizes=sizes)
        call(STORE[self.dtype], arguments, chunks=len(blocks), threads=threads)
        call(gather, arguments, chunks=len(tiles) * self.keyed, threads=threads)
        call(attend, arguments, chunks=len(blocks) * self.heads, threads=threads)
        return out

    def _slots(self, row: int) -> int:
        """The tokens of a row, up to the end of a tile."""
        return max(0, -(-(self.starts[row] + self.tokens) // KEYS) * KEYS)

    def _arguments(self) -> tuple[Attend, Tensor]:
        batch, width, keyed = len(self.starts), self.width, self.keyed
        room, standing = self._paged() if self.page else self._contiguous()
        wide = [self._slots(row) * keyed * width for row in range(batch)]
        rows = torch.tensor([
            [*standing[row], self.tokens, row * self.tokens, row, sum(wide[:row]), self._slots(row)]
            for row in range(batch)
        ])  # fmt: skip
        strides = (room.stride(1), room.stride(2), room.stride(3), 0) if not self.page else self._page_strides(room)
        bits, is_tiled = max(0, self.page.bit_length() - 1), self.is_blocked and self.page >= TILE
        sizes = torch.tensor([
            batch, keyed, self.heads // keyed, width, *strides, bits, is_tiled, self.window, 0, 0, 0, self.span,
        ])  # fmt: skip
        sizes[11:].view(torch.float32)[0] = self.scale
        out = torch.full((batch, self.tokens, self.heads, width), torch.nan)
        copied = torch.full((2, sum(wide)), torch.nan)
        arguments = Attend(
            self.q.clone(),
            self.k,
            self.v,
            *self.angles,
            room[0],
            room[1],
            rows,
            out,
            sizes,
            None,
            None,
            None,
            None,
            copied[0],
            copied[1],
        )
        return arguments, out

    def _contiguous(self) -> tuple[Tensor, list[list[int]]]:
        """Keys and values (2, B, K, capacity, H) with the rows' tokens behind paddings, and where rows stand."""
        end = max(self.starts) + 3  # where the new tokens go, in all rows
        room = torch.full((2, len(self.starts), self.keyed, end + self.tokens + 1, self.width), torch.nan).to(
            self.dtype
        )
        rows = []
        for row, start in enumerate(self.starts):
            first = end - start
            room[:, row, :, first : first + max(0, start)] = self.before[row].transpose(1, 2)
            rows.append([start, first, 0])
        return room, rows

    def _page_strides(self, room: Tensor) -> tuple[int, int, int, int]:
        """Elements from one row, head, slot or page to the next."""
        return 0, room.stride(2), self.width, room.stride(1) if self.is_blocked else self.page * self.width

    def _paged(self) -> tuple[Tensor, list[list[int]]]:
        """Keys and values in pages in any order, and where rows stand.

        (2, 1, K, slots, H), or (2, pages, K, page, H) in blocks.
        """
        counts = [-(-(start + self.tokens) // self.page) for start in self.starts]
        order = torch.randperm(sum(counts))
        self._tables = [table.contiguous() for table in order.split(counts)]
        cache = PagedCache(
            LlamaConfig(
                vocab_size=8, hidden_size=2, intermediate_size=2, num_hidden_layers=1, head_dim=self.width,
                num_attention_heads=self.heads, num_key_value_heads=self.keyed,
            ),
            num_blocks=len(order), block_size=self.page, dtype=self.dtype, device="cpu",
        )  # fmt: skip
        room = torch.full((2, 1, self.keyed, len(order) * self.page, self.width), torch.nan).to(self.dtype)
        for buffer in cache.buffers[0]:
            buffer.fill_(torch.nan)
        rows = []
        for start, table, before in zip(self.starts, self._tables, self.before, strict=True):
            if start:
                slots = cache.slots(table.tolist(), 0, start)
                cache.write(0, slots, before[0].transpose(0, 1), before[1].transpose(0, 1))
                room[:, 0, :, slots] = before.transpose(1, 2)
            rows.append([start, 0, table.data_ptr()])
        return torch.stack(cache.buffers[0]) if self.is_blocked else room, rows
