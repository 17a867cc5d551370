"""A pass of any number of tokens through a whole Llama, as one program of kernels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from llamita.context.batch import BatchLayout
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.arguments import Angles, Attend, Embed, Gate, Norm, Sizes
from llamita.kernels.cpu.constants import DTYPES, KEYS, NUMBERS, Q8_BLOCK, QUERIES, ROWS
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.model.layers import LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM
from llamita.model.parts import LayerParts, parts_of
from llamita.plans.cpu.weights import packed_of
from llamita.plans.cpu.workspace import Workspace, bits, empty, numbers

EMBED = {dtype: named("elementwise", f"embed_{name}") for dtype, name in DTYPES.items()}
EMBED_PACKED = {name: named("block_kernels", f"embed_{name}") for name in FORMATS}
NORM, GATE, ANGLES = named("elementwise", "norm"), named("elementwise", "gate"), named("rotary", "angles")
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


@dataclass(frozen=True)
class Activations:
    """What products read: fp32 (rows, K), and the same in bf16 or as q8_blocks where one of them wants that."""

    floats: Tensor
    halves: Tensor | None
    q8_blocks: Tensor | None


class Pass:
    """The program for B rows of T new tokens each, of whose logits the last `kept` are wanted.

    What it computes of a token does not depend on B, T, kept, or on what a cache held before: kernels/reference.py is
    the definition. Values between kernels are fp32, rounded to bf16 or q8_blocks where a matrix of those reads them.
    """

    def __init__(
        self, model: LlamaForCausalLM, workspace: Workspace, *, batch: int, tokens: int, kept: int, dtype: torch.dtype
    ) -> None:
        self._config, self._workspace = model.config, workspace
        self._batch, self._tokens, self._kept, self._dtype = batch, tokens, kept, dtype
        self._program = Program()
        self._is_paired = dtype == torch.bfloat16 and multiplies_pairs()
        self._positions = empty(batch * tokens, dtype=torch.int64)
        self._standing = empty(batch, 4, dtype=torch.int64).zero_()  # a `Row` of each
        self._where = self._standing.numpy(), self._positions.numpy().reshape(batch, tokens)
        self._steps = np.arange(tokens)
        window, scale = self._config.sliding_window or 1 << 30, bits(self._config.softmax_scale)
        heads, width = self._config.num_key_value_heads, self._config.head_dim
        self._group = self._config.num_attention_heads // heads
        sizes = Sizes(
            tokens=tokens, heads=heads, group=self._group, width=width, row_stride=0, head_stride=0, slot_stride=width,
            page_bits=0, window=window, scale=scale, wide=0,
        )  # fmt: skip
        self._sizes = numbers(*sizes)
        self._attends: list[int] = []
        self._spreads: list[int] = []
        self._keys: Callable[[], Tensor | None] = lambda: None  # of the cache that the program knows; it may go
        self._build(model)

    def run(self, ids: Tensor, buffers: Buffers, layout: BatchLayout) -> Tensor:
        """The logits (B, kept, V) in fp32 of ids (B, T), whose keys and values go into the cache's buffers.

        buffers: (keys, values) of each layer, (B, K, slots, H); (1, K, slots, H) where the rows share all slots.
        """
        ids = ids.contiguous()
        logits = empty(self._batch, self._kept, self._config.vocab_size)
        if buffers[0][0] is not self._keys():  # all layers move together
            self._move(buffers)
        self._stand(layout)
        self._program.change(self._ids, ids=ids.data_ptr())
        self._program.change(self._head, out=logits.data_ptr())
        self._program.run()
        return logits

    def _stand(self, layout: BatchLayout) -> None:
        """Write down where the new tokens stand, for the kernels."""
        standing, positions = self._where
        standing[:, 0], standing[:, 1], standing[:, 2] = layout.start, layout.first, 0
        if layout.tables is not None and layout.origin is not None:
            self._tables, entries = layout.tables, layout.tables.shape[1]
            begin = torch.arange(self._batch, device="cpu") * entries + layout.origin
            standing[:, 2] = layout.tables.data_ptr() + 8 * begin.numpy()
            self._sizes[SIZE.page_bits] = layout.page_size.bit_length() - 1
        np.add(standing[:, :1], self._steps, out=positions)
        if isinstance(layout.start, Tensor) and standing[:, 0].min() < 0:
            np.maximum(positions, 0, out=positions)
        if self._spreads:
            self._widen(-(-(int(standing[:, 0].max()) + self._tokens) // KEYS) * KEYS)

    def _widen(self, slots: int) -> None:
        """Make room for what `prefill_attention` reads of the cache."""
        heads, width = self._batch * self._config.num_key_value_heads, self._config.head_dim
        if slots == int(self._sizes[SIZE.wide]):
            return
        self._sizes[SIZE.wide] = slots
        self._wide = [self._workspace.buffer(f"wide {name}", heads, slots, width) for name in ("keys", "values")]
        for number in (*self._spreads, *self._attends):
            self._program.change(number, wide_keys=self._wide[0], wide_values=self._wide[1])
        for number in self._spreads:
            self._program.change(number, chunks=heads * slots // KEYS)

    def _move(self, buffers: Buffers) -> None:
        """Tell the program where the cache's buffers are."""
        rows, heads, capacity, width = buffers[0][0].shape
        assert all(x.shape[2] == capacity and x.dtype == self._dtype for layer in buffers for x in layer)
        self._sizes[SIZE.row_stride] = 0 if rows == 1 else heads * capacity * width
        self._sizes[SIZE.head_stride] = capacity * width
        kernels = len(self._attends) // len(buffers)  # of a layer that read or write the cache
        for layer, (keys, values) in enumerate(buffers):
            for number in self._attends[layer * kernels : (layer + 1) * kernels]:
                self._program.change(number, keys=keys, values=values)
        self._keys = ref(buffers[0][0])

    # Building

    def _build(self, model: LlamaForCausalLM) -> None:
        config, rope, rows = model.config, model.model.rotary_emb, self._batch * self._tokens
        half = config.head_dim // 2
        self._x = self._buffer("x", rows, config.hidden_size)
        self._cosines, self._sines = self._buffer("cosines", rows, half), self._buffer("sines", rows, half)
        self._widen_biases(model)
        embedding = model.model.embed_tokens
        packed = packed_of(embedding)
        table, kernel = (
            (packed.stream, EMBED_PACKED[packed.kind]) if packed else (embedding.weight, EMBED[embedding.weight.dtype])
        )
        arguments = Embed(None, table, self._x, config.hidden_size)
        self._ids = self._program.add(kernel, arguments, chunks=rows, beside=True)
        angles = Angles(self._positions, rope.inv_freq, self._cosines, self._sines, half, bits(rope.attention_factor))
        self._program.add(ANGLES, angles, chunks=rows, beside=True)
        for layer in model.model.layers:
            self._layer(parts_of(layer, config, plan="the plan of the CPU's kernels"))
        last = self._norm(model.model.norm, (model.lm_head,), kept=self._kept)
        self._head = self._linear(model.lm_head, last, self._x)

    def _widen_biases(self, model: LlamaForCausalLM) -> None:
        """Let every run begin with the biases in fp32: what was copied once would not change with them."""
        self._biases: dict[int, Tensor] = {}
        for module in model.modules():
            tensor = module._parameters.get("bias")
            if tensor is None or id(tensor) in self._biases:
                continue
            wide = self._biases[id(tensor)] = tensor.detach()
            if tensor.dtype != torch.float32:
                self._biases[id(tensor)] = empty(tensor.numel())
                arguments = Embed(numbers(0), wide, self._biases[id(tensor)], tensor.numel())
                self._program.add(EMBED[tensor.dtype], arguments, beside=True)

    def _layer(self, layer: LayerParts) -> None:
        rows, config = self._batch * self._tokens, self._config
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        normed = self._norm(layer.input_norm, layer.qkv)
        q, k, v = (self._buffer(name, rows, size) for name, size in zip("qkv", (queries, keys, keys), strict=True))
        for module, out in zip(layer.qkv, (q, k, v), strict=True):
            self._linear(module, normed, out, beside=out is not q)
        self._linear(layer.o, self._attend(q, k, v, layer.o), self._x, adds=True)
        normed = self._norm(layer.post_norm, (layer.gate, layer.up))
        self._linear(layer.down, self._gated(layer, normed), self._x, adds=True)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, reader: nn.Module) -> Activations:
        """Attention of the new tokens, as the output projection reads it."""
        out = self._activations("attended", q.shape, (reader,))
        arguments = Attend(
            q, k, v, self._cosines, self._sines, None, None, self._standing, out.floats, self._sizes, *[None] * 4
        )
        heads, width = self._config.num_key_value_heads, self._config.head_dim
        if self._tokens <= FEW_QUERIES:
            is_rounded = out.q8_blocks is None or self._group * width % 32 == 0
            if is_rounded:
                arguments = arguments._replace(halves=out.halves, q8_blocks=out.q8_blocks)
            kernel = DECODE_PAIRS if self._is_paired else DECODE[self._dtype]
            self._attends.append(self._program.add(kernel, arguments, chunks=self._batch * heads))
            if is_rounded:
                return out
        else:
            self._prefill(arguments)
        if out.halves is not None or out.q8_blocks is not None:
            linear.add_round(self._program, out.floats, halves=out.halves, q8_blocks=out.q8_blocks)
        return out

    def _prefill(self, arguments: Attend) -> None:
        """The kernels for many tokens."""
        spread, attend, queries = SPREAD[self._dtype], PREFILL[self._dtype], 16
        if self._is_paired:
            spread, attend, queries = SPREAD_PAIRS, PREFILL_PAIRS, QUERIES
        blocks = self._batch * self._config.num_attention_heads * -(-self._tokens // queries)
        numbers = [
            self._program.add(STORE[self._dtype], arguments, chunks=self._batch * self._tokens),
            self._program.add(spread, arguments),
            self._program.add(attend, arguments, chunks=blocks),
        ]
        self._attends += numbers
        self._spreads.append(numbers[1])

    def _gated(self, mlp: LayerParts, x: Activations) -> Activations:
        """The gated pair of products; of many rows and packed matrices in one go, so that neither is ever written."""
        rows, gate, up = self._batch * self._tokens, packed_of(mlp.gate), packed_of(mlp.up)
        is_plain = mlp.gate.bias is None and mlp.up.bias is None
        size = self._config.intermediate_size
        out = self._activations("gated", torch.Size((rows, size)), (mlp.down,))
        is_alike = gate and up and gate.kind == up.kind and gate.rows % 32 == 0
        if rows >= ROWS and is_plain and gate and up and is_alike and out.q8_blocks is not None:
            assert x.q8_blocks is not None
            linear.add_gated(self._program, gate, up, x.q8_blocks, out.q8_blocks, rows)
            return out
        first, second = out.floats, self._buffer("up", rows, size)
        self._linear(mlp.gate, x, first)
        self._linear(mlp.up, x, second, beside=True)
        count, columns = first.numel(), 512 if rows <= linear.FEW else 8192
        arguments = Gate(first, second, first, out.halves, out.q8_blocks, columns, count)
        self._program.add(GATE, arguments, chunks=-(-count // columns))
        return out

    def _norm(self, norm: LlamaRMSNorm, readers: Sequence[nn.Module], kept: int | None = None) -> Activations:
        """Normalize the residual stream for its readers, of each row the last `kept` tokens."""
        kept = self._tokens if kept is None else kept
        weight, width = norm.weight.detach(), norm.weight.numel()
        out = self._activations("normed", torch.Size((self._batch * kept, width)), readers)
        arguments = Norm(
            self._x, weight, out.floats, out.halves, out.q8_blocks, width, bits(norm.variance_epsilon), self._tokens,
            kept, NUMBERS[weight.dtype],
        )  # fmt: skip
        self._program.add(NORM, arguments, chunks=self._batch * kept)
        return out

    def _linear(
        self, module: nn.Module, x: Activations, out: Tensor, *, adds: bool = False, beside: bool = False
    ) -> int:
        """One matrix, which reads x in the form that it is made for."""
        packed, bias = packed_of(module), module.bias
        bias = self._biases[id(bias)] if isinstance(bias, Tensor) else None
        if packed is not None:
            assert x.q8_blocks is not None
            rows = len(x.floats)
            return linear.add_quantized(self._program, packed, x.q8_blocks, out, bias, rows, adds=adds, beside=beside)
        assert isinstance(module, nn.Linear)
        weight = module.weight.detach()
        read = x.halves if linear.input_dtype(weight) == torch.bfloat16 else x.floats
        assert read is not None
        return linear.add_plain(self._program, weight, read, out, bias, adds=adds, beside=beside)

    def _activations(self, name: str, shape: torch.Size, readers: Sequence[nn.Module]) -> Activations:
        """Buffers for what some matrices read."""
        packed = [packed_of(reader) is not None for reader in readers]
        plain = [reader.weight for reader, is_packed in zip(readers, packed, strict=True) if not is_packed]
        is_halved = any(linear.input_dtype(weight) == torch.bfloat16 for weight in plain if isinstance(weight, Tensor))
        size = shape.numel() // 32 * Q8_BLOCK
        return Activations(
            self._buffer(name, *shape),
            self._buffer(f"{name} halves", *shape, dtype=torch.bfloat16) if is_halved else None,
            self._buffer(f"{name} q8", size, dtype=torch.uint8) if any(packed) else None,
        )

    def _buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._workspace.buffer(name, *shape, dtype=dtype)


def multiplies_pairs() -> bool:
    """Whether kernels may use the instruction for pairs of bf16."""
    from llamita.kernels.cpu import isa  # with it comes LLVM, which only who runs kernels needs

    return isa.has("avx512bf16")


def check_ids(ids: Tensor, vocabulary: int) -> None:
    """Raise IndexError for token ids that the embedding has no row for: kernels would read on."""
    values = ids.flatten().tolist()
    least, most = min(values), max(values)
    if least < 0 or most >= vocabulary:
        raise IndexError(f"ids run from {least} to {most}, but the model has {vocabulary}: give its own tokenizer's")
