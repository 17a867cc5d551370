"""A pass of any number of tokens through a whole Llama, as one program of kernels."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llamita.context.batch import BatchLayout
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.arguments import Angles, Embed, Gate, Norm, bits
from llamita.kernels.cpu.constants import DTYPES, NUMBERS, Q8_BLOCK, ROWS
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.model.layers import LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM
from llamita.model.parts import LayerParts, parts_of
from llamita.plans.cpu.attention import Activations, Buffers, RaggedAttention
from llamita.plans.cpu.weights import CPU, LayerWeights, packed_of
from llamita.plans.cpu.workspace import Workspace, empty, numbers

EMBED = {dtype: named("elementwise", f"embed_{name}") for dtype, name in DTYPES.items()}
EMBED_PACKED = {name: named("block_kernels", f"embed_{name}") for name in FORMATS}
NORM, GATE, ANGLES = named("elementwise", "norm"), named("elementwise", "gate"), named("rotary", "angles")


class ModelParts(NamedTuple):
    """A model, read once for all programs: its layers, their weights, and all of its biases.

    like: of each layer, the number of the first whose calls it repeats with other tensors; its own where none is.
    """

    model: LlamaForCausalLM
    layers: list[LayerParts]
    weights: list[LayerWeights]
    like: list[int]
    biases: list[Tensor]

    @classmethod
    def of(cls, model: LlamaForCausalLM) -> "ModelParts":
        """Raises UnsupportedError for layers that are no Llama's."""
        plan = "the plan of the CPU's kernels"
        layers = [parts_of(layer, model.config, plan=plan) for layer in model.model.layers]
        found = (module._parameters.get("bias") for module in model.modules())
        weights = [LayerWeights.of(layer) for layer in layers]
        return cls(
            model,
            layers,
            weights,
            [
                next(n for n, one in enumerate(weights) if n == number or own.can_replace(one))
                for number, own in enumerate(weights)
            ],
            list({id(bias): bias for bias in found if bias is not None}.values()),
        )


class Pass:
    """The program for a number of new tokens, of any rows; a run says of which of them it wants logits.

    The result for a token does not depend on the others, or on how the cache was filled: kernels/reference.py is the
    definition. Values between kernels are fp32; they are rounded to bf16 or q8_blocks for matrices that need that.
    levels: how many kinds of rows there are, which see what those before them write.
    """

    def __init__(
        self,
        parts: ModelParts,
        workspace: Workspace,
        tokens: int,
        *,
        dtype: torch.dtype,
        levels: int = 1,
    ) -> None:
        self._parts, self._config, self._workspace, self._count = parts, parts.model.config, workspace, tokens
        self._program, self._buffers = Program(), dict[tuple[object, ...], Tensor]()
        self._positions, self._wanted = empty(tokens, dtype=torch.int64), empty(tokens, dtype=torch.int64)
        self._given = empty(1, tokens, dtype=torch.int64)
        self._given_numbers = self._given.numpy()[0]
        self._attention = [
            RaggedAttention(self._config, workspace, self._program, positions=self._positions, dtype=dtype)
            for _ in range(levels)
        ]
        self._heads, self._last_wanted = dict[int, Program](), list[int]()
        self._build()

    def run(
        self, ids: Tensor | Sequence[int], buffers: Buffers, layouts: Sequence[BatchLayout], wanted: Sequence[int]
    ) -> Tensor:
        """The logits (n, V) in fp32 of some tokens of ids, whose keys and values go into the cache's buffers.

        ids: (B, T), or (1, T) of rows of any lengths, or a list of these. buffers: (keys, values) of each layer,
        (B, K, slots, H); (1, K, slots, H) where the rows share all slots; or those of a `PagedCache`. layouts: one of
        each level. wanted: their numbers.
        """
        if not isinstance(ids, Tensor):
            self._given_numbers[:] = ids
            ids = self._given
        ids = ids.contiguous()
        logits = torch.empty(len(wanted), self._config.vocab_size, dtype=torch.float32, device=CPU)
        for attention, layout in zip(self._attention, layouts, strict=True):
            attention.set_buffers(buffers, layout)
            attention.write_rows(layout, *ids.shape)
        self._set_logits(wanted)
        self._program.put(self._ids, ids)
        self._program.put(self._out, logits)
        self._program.run()
        return logits

    def _set_logits(self, wanted: Sequence[int]) -> None:
        """Let the program end with the norm and the product for the logits of these tokens."""
        if wanted == self._last_wanted:
            return
        self._last_wanted, count = list(wanted), len(wanted)
        self._wanted.numpy()[:count] = wanted
        if count == self._logit_count:
            return
        if count not in self._heads:
            self._heads[count] = Program()
            self._add_head(self._heads[count], count)
        for number, of in ((self._head - 1, 1), (self._head, 2)):
            self._program.replace(number, self._heads[count], of)
        self._logit_count = count

    # Building

    def _build(self) -> None:
        model = self._parts.model
        config, rope, rows = model.config, model.model.rotary_emb, self._count
        half = config.head_dim // 2
        self._x = self._buffer("x", rows, config.hidden_size)
        self._cosines, self._sines = self._buffer("cosines", rows, half), self._buffer("sines", rows, half)
        self._widen(self._parts.biases)
        embedding = model.model.embed_tokens
        packed = packed_of(embedding)
        table, kernel = (
            (packed.stream, EMBED_PACKED[packed.format_name])
            if packed
            else (embedding.weight, EMBED[embedding.weight.dtype])
        )
        arguments = Embed(None, table, self._x, config.hidden_size)
        self._ids = self._program.place(self._program.add(kernel, arguments, chunks=rows, concurrent=True), "ids")
        angles = Angles(self._positions, rope.inv_freq, self._cosines, self._sines, half, bits(rope.attention_factor))
        self._program.add(ANGLES, angles, chunks=rows, concurrent=True)
        self._layers(self._parts)
        self._logit_count, self._head = 1, self._add_head(self._program, 1)
        self._out = self._program.place(self._head, "out")

    def _add_head(self, program: Program, count: int) -> int:
        """Add the norm and the product for the logits of `count` tokens; returns the number of the latter."""
        norm, head = self._parts.model.model.norm, self._parts.model.lm_head
        out = self._activations("normed", torch.Size((count, norm.weight.numel())), (head,))
        self._add_norm(program, norm, out, self._wanted)
        return self._linear(head, out, self._x, program=program)

    def _widen(self, biases: Sequence[Tensor]) -> None:
        """Cast the biases to fp32 at the start of every run: a single copy would miss their changes."""
        self._biases: dict[int, Tensor] = {}
        for tensor in biases:
            wide = self._biases[id(tensor)] = tensor.detach()
            if tensor.dtype != torch.float32:
                self._biases[id(tensor)] = empty(tensor.numel())
                arguments = Embed(numbers(0), wide, self._biases[id(tensor)], tensor.numel())
                self._program.add(EMBED[tensor.dtype], arguments, concurrent=True)

    def _layers(self, parts: ModelParts) -> None:
        """Build the first layer of a kind, and repeat its calls with the tensors of others."""
        built: dict[int, range] = {}
        for first, alike in groupby(range(len(parts.layers)), key=parts.like.__getitem__):
            numbers = [*alike]
            if first not in built:
                start = len(self._program) + 1
                self._layer(parts.layers[numbers.pop(0)])
                built[first] = range(start, len(self._program) + 1)
            if numbers:
                addresses, *others = (self._addresses(parts.weights[number]) for number in (first, *numbers))
                for shift in self._program.repeat(built[first], addresses, others):
                    for attention in self._attention:
                        attention.repeat(first, shift)

    def _addresses(self, weights: LayerWeights) -> list[int]:
        """Of all tensors that a layer's calls read."""
        return weights.addresses + [self._biases[id(bias)].data_ptr() for bias in weights.biases]

    def _layer(self, layer: LayerParts) -> None:
        rows, config = self._count, self._config
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        normed = self._norm(layer.input_norm, layer.qkv)
        q, k, v = (self._buffer(name, rows, size) for name, size in zip("qkv", (queries, keys, keys), strict=True))
        for module, out in zip(layer.qkv, (q, k, v), strict=True):
            self._linear(module, normed, out, concurrent=out is not q)
        self._linear(layer.o, self._attend(q, k, v, layer.o), self._x, adds=True)
        normed = self._norm(layer.post_norm, (layer.gate, layer.up))
        self._linear(layer.down, self._gated(layer, normed), self._x, adds=True)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, reader: nn.Module) -> Activations:
        """Attention of the new tokens, in the dtype that the output projection reads."""
        out = self._activations("attended", q.shape, (reader,))
        for attention in self._attention:
            attention.add(q, k, v, (self._cosines, self._sines), out)
        return out

    def _gated(self, mlp: LayerParts, x: Activations) -> Activations:
        """The gate and up products; for many rows and packed matrices in one kernel, so that neither is stored."""
        rows, gate, up = self._count, packed_of(mlp.gate), packed_of(mlp.up)
        is_plain = mlp.gate.bias is None and mlp.up.bias is None
        size = self._config.intermediate_size
        out = self._activations("gated", torch.Size((rows, size)), (mlp.down,))
        is_alike = gate and up and gate.format_name == up.format_name and gate.rows % 32 == 0
        if rows >= ROWS and is_plain and gate and up and is_alike and out.q8_blocks is not None:
            assert x.q8_blocks is not None
            linear.add_gated(self._program, gate, up, x.q8_blocks, out.q8_blocks, rows)
            return out
        first, second = out.floats, self._buffer("up", rows, size)
        self._linear(mlp.gate, x, first)
        self._linear(mlp.up, x, second, concurrent=True)
        count, columns = first.numel(), 512 if rows <= linear.FEW else 8192
        arguments = Gate(first, second, first, out.halves, out.q8_blocks, columns, count)
        self._program.add(GATE, arguments, chunks=-(-count // columns))
        return out

    def _norm(self, norm: LlamaRMSNorm, readers: Sequence[nn.Module]) -> Activations:
        """Normalize the residual stream for its readers."""
        out = self._activations("normed", torch.Size((self._count, norm.weight.numel())), readers)
        self._add_norm(self._program, norm, out, None)
        return out

    def _add_norm(self, program: Program, norm: LlamaRMSNorm, out: Activations, rows: Tensor | None) -> None:
        """Normalize the tokens of x with these numbers, or all for None."""
        weight, width = norm.weight.detach(), norm.weight.numel()
        epsilon = bits(norm.variance_epsilon)
        arguments = Norm(
            self._x, weight, out.floats, out.halves, out.q8_blocks, width, epsilon, rows, NUMBERS[weight.dtype]
        )
        program.add(NORM, arguments, chunks=len(out.floats))

    def _linear(
        self,
        module: nn.Module,
        x: Activations,
        out: Tensor,
        *,
        adds: bool = False,
        concurrent: bool = False,
        program: Program | None = None,
    ) -> int:
        """One matrix product, which reads x in the dtype that the matrix needs."""
        program = self._program if program is None else program
        packed, bias = packed_of(module), module.bias
        bias = self._biases[id(bias)] if isinstance(bias, Tensor) else None
        if packed is not None:
            assert x.q8_blocks is not None
            rows = len(x.floats)
            return linear.add_quantized(program, packed, x.q8_blocks, out, bias, rows, adds=adds, concurrent=concurrent)
        assert isinstance(module, nn.Linear)
        weight = module.weight.detach()
        read = x.halves if linear.input_dtype(weight) == torch.bfloat16 else x.floats
        assert read is not None
        return linear.add_plain(program, weight, read, out, bias, adds=adds, concurrent=concurrent)

    def _activations(self, name: str, shape: torch.Size, readers: Sequence[nn.Module]) -> Activations:
        """Buffers for the input of these matrices."""
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
        key = (name, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = self._workspace.buffer(name, *shape, dtype=dtype)
        return self._buffers[key]


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raise IndexError for token ids outside the embedding: kernels would read memory past its end."""
    least, most = min(map(min, rows)), max(map(max, rows))
    if least < 0 or most >= vocabulary:
        raise IndexError(f"ids run from {least} to {most}, but the model has {vocabulary}: give its own tokenizer's")
