"""A pass of a few tokens through a whole Llama, as a program of kernels. Values between kernels are fp32."""

import struct
from collections.abc import Callable, Sequence
from weakref import ref

import torch
from torch import Tensor, nn

from llamita.cache.growing import GrowingCache
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.constants import DTYPES, NUMBERS, Q8_BLOCK
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.model.layers import LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM
from llamita.model.parts import LayerParts, parts_of
from llamita.model.stored import StoredWeight

EMBED = {dtype: named("elementwise", f"embed_{name}") for dtype, name in DTYPES.items()}
EMBED_PACKED = {name: named("block_kernels", f"embed_{name}") for name in FORMATS}
ATTEND = {dtype: named("decode_attention", f"attend_{name}") for dtype, name in DTYPES.items()}
ANGLES, NORM, GATE = (named("elementwise", name) for name in ("angles", "norm_fp32", "gate_fp32"))
CPU = torch.device("cpu")
SCRATCH = 1024  # slots of scores to begin with


class Step:
    """The program for B rows of T new tokens each, of whose logits the last `kept` are wanted.

    Must equal LlamaForCausalLM.forward of the same weights in fp32, up to the order of the sums.
    """

    def __init__(self, model: LlamaForCausalLM, *, batch: int, tokens: int, kept: int, dtype: torch.dtype) -> None:
        config = model.config
        self._program = Program()
        self._rows, self._kept, self._tokens = batch * tokens, kept, tokens
        self._batch, self._vocabulary = batch, config.vocab_size
        self._heads = config.num_attention_heads
        self._group = config.num_attention_heads // config.num_key_value_heads
        self._width, self._dtype = config.head_dim, dtype
        self._positions = empty(self._rows, dtype=torch.int64).zero_()
        self._slots = empty(1 + batch, dtype=torch.int64).zero_()
        self._places, self._numbers = self._positions.numpy().reshape(batch, tokens), self._slots.numpy()
        window = config.sliding_window or 1 << 40
        scale = bits(config.softmax_scale)
        self._sizes = numbers(tokens, config.num_key_value_heads, self._group, config.head_dim, SCRATCH, window, scale)
        self._scores = empty(0)
        self._attends: list[int] = []
        self._records: dict[int, Tensor] = {}  # by the address of what they are the bytes of
        self._keys: Callable[[], Tensor | None] = lambda: None  # of the cache that the program knows; it may go
        self._build(model)

    def run(self, ids: Tensor, cache: GrowingCache, first: Tensor | None) -> Tensor:
        """The logits (B, kept, V) in fp32 of ids (B, T), whose keys and values go into the cache.

        first: the first visible slot of each row (B,), or None where all are seen; positions count from there.
        """
        ids = ids.contiguous()
        logits = empty(self._batch, self._kept, self._vocabulary)
        slot = cache.reserve(self._tokens)
        try:
            if cache.buffers[0][0] is not self._keys():  # all layers move together
                self._move(cache)
            self._place(slot, first)
            self._program.change(self._ids, 0, ids.data_ptr())
            self._program.change(self._head, 2, logits.data_ptr())
            self._program.run()
        except BaseException:  # Ctrl-C: what was not written is not to be read
            cache.crop(slot)
            raise
        return logits

    def _place(self, slot: int, first: Tensor | None) -> None:
        """Say where the new tokens stand."""
        places, slots = self._places, self._numbers
        slots[0] = slot
        slots[1:] = 0 if first is None else first.numpy()
        for token in range(self._tokens):
            places[:, token] = slot + token - slots[1:]
        if first is not None:
            places.clip(min=0, out=places)

    def _move(self, cache: GrowingCache) -> None:
        """Tell the program where the cache's buffers are."""
        capacity = cache.buffers[0][0].shape[2]
        assert all(x.shape[2] == capacity and x.dtype == self._dtype for room in cache.buffers for x in room)
        if self._scores.numel() < self._batch * self._heads * capacity:
            self._scores = empty(self._batch * self._heads * capacity)
        self._sizes[4] = capacity
        for number, (keys, values) in zip(self._attends, cache.buffers, strict=True):
            self._program.change(number, 5, keys.data_ptr())
            self._program.change(number, 6, values.data_ptr())
            self._program.change(number, 9, self._scores.data_ptr())
        self._keys = ref(cache.buffers[0][0])

    # Building

    def _build(self, model: LlamaForCausalLM) -> None:
        config, rope = model.config, model.model.rotary_emb
        half, rows = config.head_dim // 2, self._rows
        self._x = self._room(rows, config.hidden_size)
        self._normed = self._room(rows, config.hidden_size)
        self._q = self._room(rows, config.num_attention_heads * config.head_dim)
        self._k, self._v = (self._room(rows, config.num_key_value_heads * config.head_dim) for _ in "kv")
        self._seen = self._room(rows, config.num_attention_heads * config.head_dim)
        self._gate, self._up = (self._room(rows, config.intermediate_size) for _ in "gu")
        self._cosines, self._sines = (self._room(rows, half) for _ in "cs")
        embedding = model.model.embed_tokens
        packed = packed_of(embedding)
        weight, kernel = (
            (packed.stream, EMBED_PACKED[packed.kind]) if packed else (embedding.weight, EMBED[embedding.weight.dtype])
        )
        self._widen(model)
        self._ids = self._program.add(kernel, None, weight, self._x, config.hidden_size, chunks=rows, beside=True)
        self._program.add(
            ANGLES, self._positions, rope.inv_freq, self._cosines, self._sines, half,
            bits(rope.attention_factor), chunks=rows, beside=True,
        )  # fmt: skip
        for layer in model.model.layers:
            self._layer(parts_of(layer, config, plan="the plan of the CPU's kernels"))
        self._norm(model.model.norm, (model.lm_head,), kept=self._kept)
        self._head = self._linear(model.lm_head, self._normed, self._x, rows=self._batch * self._kept)

    def _widen(self, model: LlamaForCausalLM) -> None:
        """Let every run begin with the biases in fp32: what was copied once would not change with them."""
        self._wide: dict[int, Tensor] = {}
        for module in model.modules():
            tensor = module._parameters.get("bias")
            if tensor is None or id(tensor) in self._wide:
                continue
            wide = self._wide[id(tensor)] = tensor.detach()
            if tensor.dtype != torch.float32:
                self._wide[id(tensor)] = self._room(tensor.numel())
                first_row, kernel = self._positions.new_zeros(1), EMBED[tensor.dtype]
                self._program.add(kernel, first_row, wide, self._wide[id(tensor)], tensor.numel(), beside=True)

    def _layer(self, layer: LayerParts) -> None:
        self._norm(layer.input_norm, layer.qkv)
        self._linear(layer.q, self._normed, self._q)
        self._linear(layer.k, self._normed, self._k, beside=True)
        self._linear(layer.v, self._normed, self._v, beside=True)
        chunks = self._k.numel() // (self._tokens * self._width)
        number = self._program.add(
            ATTEND[self._dtype], self._q, self._k, self._v, self._cosines, self._sines, None, None, self._slots,
            self._seen, None, self._sizes, chunks=chunks,
        )  # fmt: skip
        self._attends.append(number)
        if (records := self._records_of(self._seen, (layer.o,))) is not None:
            linear.add_quantize(self._program, self._seen, records)
        self._linear(layer.o, self._seen, self._x, adds=True)
        self._norm(layer.post_norm, (layer.gate, layer.up))
        self._linear(layer.gate, self._normed, self._gate)
        self._linear(layer.up, self._normed, self._up, beside=True)
        size, columns = self._gate.numel(), 512
        records = self._records_of(self._gate, (layer.down,))
        self._program.add(GATE, self._gate, self._up, self._gate, columns, size, records, chunks=-(-size // columns))
        self._linear(layer.down, self._gate, self._x, adds=True)

    def _norm(self, norm: LlamaRMSNorm, readers: Sequence[nn.Module], kept: int | None = None) -> None:
        """Normalize the residual stream for its readers, of each row the last `kept` tokens."""
        kept = self._tokens if kept is None else kept
        records = self._records_of(self._normed, readers)
        weight, width = norm.weight.detach(), norm.weight.numel()
        self._program.add(
            NORM, self._x, None, weight, self._normed, width, bits(norm.variance_epsilon), records,
            self._tokens, kept, NUMBERS[weight.dtype], chunks=self._batch * kept,
        )  # fmt: skip

    def _linear(
        self,
        module: nn.Module,
        x: Tensor,
        out: Tensor,
        *,
        rows: int | None = None,
        adds: bool = False,
        beside: bool = False,
    ) -> int:
        """One matrix, which reads x or its records."""
        rows = rows or self._rows
        packed, bias = packed_of(module), module.bias
        bias = self._wide[id(bias)] if isinstance(bias, Tensor) else None
        if packed is None:
            assert isinstance(module, nn.Linear)
            weight = module.weight.detach()
            return linear.add_dense(self._program, weight, x, out, bias, rows, adds=adds, beside=beside)
        records = self._records[x.data_ptr()]
        return linear.add_packed(self._program, packed, records, out, bias, rows, adds=adds, beside=beside)

    def _records_of(self, x: Tensor, readers: Sequence[nn.Module]) -> Tensor | None:
        """Room for x in bytes, where any of its readers wants that."""
        if not any(packed_of(reader) for reader in readers):
            return None
        if x.data_ptr() not in self._records:
            self._records[x.data_ptr()] = empty(x.numel() // 32 * Q8_BLOCK, dtype=torch.uint8).zero_()
        return self._records[x.data_ptr()]

    def _room(self, *shape: int) -> Tensor:
        return empty(*shape).zero_()


def check_ids(ids: Tensor, vocabulary: int) -> None:
    """Raise IndexError for token ids that the embedding has no row for: kernels would read on."""
    values = ids.flatten().tolist()
    least, most = min(values), max(values)
    if least < 0 or most >= vocabulary:
        raise IndexError(f"ids run from {least} to {most}, but the model has {vocabulary}: give its own tokenizer's")


def bias_of(module: nn.Module) -> Tensor | None:
    """A linear layer's bias in fp32, or None."""
    bias = module.bias
    return bias.detach().float().contiguous() if isinstance(bias, Tensor) else None


def packed_of(module: nn.Module) -> Packed | None:
    """The packed matrix that a quantized layer has on the CPU, or None for a plain one."""
    view = module.kernel_view() if isinstance(module, StoredWeight) else None
    return view if isinstance(view, Packed) else None


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for kernels, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=dtype, device=CPU)


def numbers(*values: int) -> Tensor:
    """Numbers for kernels: int64."""
    return torch.tensor(values, dtype=torch.int64, device=CPU)


def bits(number: float) -> int:
    """The fp32 of a number as the integer that a program's row holds."""
    return struct.unpack("<q", struct.pack("<ff", number, 0.0))[0]
