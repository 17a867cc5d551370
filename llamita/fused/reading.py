"""A pass of many tokens through a whole Llama: torch's large products, or the packed ones, and kernels between them."""

from collections.abc import Sequence
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.cache.growing import GrowingCache
from llamita.fused.step import bias_of, bits, packed_of
from llamita.kernels import linear
from llamita.kernels.layout import DTYPES, KEYS, RECORD
from llamita.kernels.program import Kernel, Program, named
from llamita.model.layers import LlamaDecoderLayer, LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM

ANGLES = named("elementwise", "angles")
NORM = {dtype: named("elementwise", f"norm_{name}") for dtype, name in DTYPES.items()}
GATE = {dtype: named("elementwise", f"gate_{name}") for dtype, name in DTYPES.items()}
WIDEN = {dtype: named("causal", f"widen_{name}") for dtype, name in DTYPES.items()}
ATTEND = {dtype: named("causal", f"causal_{name}") for dtype, name in DTYPES.items()}
PAIRED = {dtype: named("pairs", f"causal_pairs_{DTYPES[dtype]}") for dtype in (torch.float32, torch.bfloat16)}
PAIR = named("pairs", "pair_values")
QUERIES = {dtype: 32 if dtype == torch.bfloat16 else 16 for dtype in DTYPES}  # of a block, by the cache
SPARE_ROWS = 31  # behind the queries, which blocks may reach into
SPARE = 9  # slots behind the last that a block of keys may reach into


class Reading:
    """Reads tokens into a cache and gives the logits of the last of each row.

    Must equal LlamaForCausalLM.forward of the same weights, up to the order of the sums. The residual stream is fp32;
    between products values are in the dtype of the weights, or fp32 where weights are packed.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._cache_dtype = model.dtype
        layers = [(name, module) for name, module in model.named_modules() if name.endswith("_proj")]
        dtypes = {torch.float32 if packed_of(module) else module.weight.dtype for _, module in layers}
        self._dtype = model.dtype if dtypes == {model.dtype} else torch.float32

    def run(self, ids: Tensor, cache: GrowingCache, first: Tensor | None, kept: int) -> Tensor:
        """The logits (B, kept, V) in fp32 of the last of ids (B, T), whose keys and values go into the cache.

        first: the first visible slot of each row (B,), or None where all are seen; positions count from there.
        """
        batch, tokens = ids.shape
        slot = cache.reserve(tokens, spare=SPARE)
        try:
            place = Place(self._model, batch, tokens, slot, cache.rooms[0][0].shape[2], first)
            x = self._model.model.embed_tokens(ids).float().flatten(0, 1).contiguous()  # (B * T, D)
            y = None
            for number, layer in enumerate(self._model.model.layers):
                assert isinstance(layer, LlamaDecoderLayer)
                y = self._layer(layer, x, y, place, cache.rooms[number])
            last = self._norm(self._model.model.norm, x, y, place, batch, tokens, kept)
        except BaseException:  # Ctrl-C: what was not written is not to be read
            cache.crop(slot)
            raise
        (logits,) = self._products((self._model.lm_head,), last, place, "l")
        return logits.view(batch, kept, -1)

    def _layer(
        self, layer: LlamaDecoderLayer, x: Tensor, y: Tensor | None, place: "Place", room: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One layer; y is what is still to be added to x, and so is what comes back."""
        attention, mlp = layer.self_attn, layer.mlp
        normed = self._norm(layer.input_layernorm, x, y, place, 1, len(x), len(x))
        q, k, v = self._products((attention.q_proj, attention.k_proj, attention.v_proj), normed, place, "qkv")
        (y,) = self._products((attention.o_proj,), self._attend(q, k, v, place, room), place, "y")
        normed = self._norm(layer.post_attention_layernorm, x, y, place, 1, len(x), len(x))
        gate, up = self._products((mlp.gate_proj, mlp.up_proj), normed, place, "gu")
        (y,) = self._products((mlp.down_proj,), self._gate(gate, up), place, "y")
        return y

    def _products(self, modules: Sequence[nn.Module], x: Tensor, place: "Place", names: str) -> list[Tensor]:
        """x (rows, K) through some linear layers that all read it; `names` are those of the room for what comes out."""
        matrices = [packed_of(module) for module in modules]
        if any(matrix is None for matrix in matrices):
            return [self._product(module, x) for module in modules]
        program, x = Program(), x.float()
        records = place.room("records", x.numel() // 32 * RECORD, dtype=torch.uint8)
        linear.add_bytes(program, x, records)
        outs = []
        for module, packed, name in zip(modules, matrices, names, strict=True):
            assert packed is not None
            outs.append(place.room(name, len(x), packed.rows))
            linear.add_packed(program, packed, records, outs[-1], bias_of(module), len(x), beside=len(outs) > 1)
        program.run()
        return outs

    def _product(self, module: nn.Module, x: Tensor) -> Tensor:
        packed = packed_of(module)
        if packed is not None:
            return linear.linear(x, packed, bias_of(module)).to(self._dtype)
        assert isinstance(module, nn.Linear)
        if len(x) <= linear.FEW:
            return linear.few(x.float(), module.weight, module.bias)
        return F.linear(x.to(module.weight.dtype), module.weight, module.bias).to(self._dtype)

    def _norm(
        self, norm: LlamaRMSNorm, x: Tensor, y: Tensor | None, place: "Place", batch: int, tokens: int, kept: int
    ) -> Tensor:
        """Add y to x in place, and normalize the last `kept` tokens of each row."""
        out = place.room("normed", batch * kept, x.shape[1], dtype=self._dtype)
        weight = norm.weight.detach().float()
        epsilon = bits(norm.variance_epsilon)
        _run(NORM[self._dtype], x, y, weight, out, x.shape[1], epsilon, 0, tokens, kept, chunks=batch * kept)
        return out

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        size, columns = gate.numel(), 4096
        _run(GATE[self._dtype], gate, up, gate, columns, size, 0, chunks=-(-size // columns))
        return gate

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, place: "Place", room: tuple[Tensor, Tensor]) -> Tensor:
        """Turn and store the new heads, and let them look at what is before them: (rows, N * H)."""
        turned = place.room("turned", len(q) + SPARE_ROWS, q.shape[1])
        out = place.room("o", *q.shape, dtype=self._dtype)
        program = Program()
        turn = named("causal", f"turn_{DTYPES[self._dtype]}_{DTYPES[self._cache_dtype]}")
        program.add(turn, q, k, v, place.cosines, place.sines, *room, turned, place.sizes, chunks=len(q))
        size = QUERIES[self._cache_dtype]
        blocks = len(q) // place.tokens * place.queries * -(-place.tokens // size)
        across = place.heads * -(-place.slots // KEYS)
        if self._cache_dtype == torch.bfloat16:
            pairs_of_chunk = KEYS // 2
            program.add(PAIR, room[1], place.paired, place.sizes, pairs_of_chunk, chunks=across)
            near = (turned, room[0], place.paired)
            program.add(PAIRED[self._dtype], *near, place.seen, place.sizes, out, chunks=blocks)
        else:
            for of, to in zip(room, place.wide, strict=True):
                beside = to is place.wide[1]
                program.add(WIDEN[self._cache_dtype], of, to, place.sizes, KEYS, chunks=across, beside=beside)
            program.add(ATTEND[self._dtype], turned, *place.wide, place.seen, place.sizes, out, chunks=blocks)
        program.run()
        return out


class Place:
    """Where the new tokens stand, and room to work in: the same for all layers of a pass.

    What a layer leaves in a room lasts until the next writes there. New memory for each would cost more than some
    products: the system fills every page with zeros when it is first touched.
    """

    def __init__(
        self, model: LlamaForCausalLM, batch: int, tokens: int, slot: int, capacity: int, first: Tensor | None
    ) -> None:
        config, rope = model.config, model.model.rotary_emb
        width, self.queries, self.tokens = config.head_dim, config.num_attention_heads, tokens
        self.heads = batch * config.num_key_value_heads
        self.slots = (slot + tokens + SPARE) // 2 * 2
        self.seen = torch.zeros(1 + batch, dtype=torch.long)
        self.seen[0] = slot
        positions = torch.arange(slot, slot + tokens).expand(batch, tokens)
        if first is not None:
            self.seen[1:] = first
            positions = (positions - first[:, None]).clamp(min=0)
        window, scale = config.sliding_window or 1 << 30, bits(width**-0.5)
        group = config.num_attention_heads // config.num_key_value_heads
        self.sizes = torch.tensor(
            [tokens, config.num_key_value_heads, group, width, capacity, window, scale, slot, self.slots]
        )
        self._width = width
        self._rooms: dict[str, Tensor] = {}
        self.cosines, self.sines = (torch.empty(batch * tokens, width // 2) for _ in "cs")
        _run(
            ANGLES, positions.contiguous(), rope.inv_freq.float(), self.cosines, self.sines, width // 2,
            bits(rope.attention_factor), chunks=batch * tokens,
        )  # fmt: skip

    def room(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor of this name, of a size that it may be given anew."""
        room, size = self._rooms.get(name), prod(shape)
        if room is None or room.numel() < size:
            room = self._rooms[name] = torch.empty(size, dtype=dtype)
        return room[:size].view(shape)

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Room for a layer's keys and values in fp32."""
        shape = (self.heads, self.slots, self._width)
        return torch.empty(shape), torch.empty(shape)

    @cached_property
    def paired(self) -> Tensor:
        """Room for a layer's values in pairs of bf16."""
        return torch.empty(self.heads, self.slots // 2, self._width, dtype=torch.int32)


def _run(kernel: Kernel, *arguments: Tensor | int | None, chunks: int) -> None:
    """A program of one call."""
    program = Program()
    program.add(kernel, *arguments, chunks=chunks)
    program.run()
