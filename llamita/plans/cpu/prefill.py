"""A pass of many tokens through a whole Llama: large products, plain or packed, and kernels between them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.cache.growing import GrowingCache
from llamita.kernels.cpu import linear
from llamita.kernels.cpu.constants import DTYPES, KEYS, NUMBERS, Q8_BLOCK, QUERIES, ROWS
from llamita.kernels.cpu.runtime.program import Program, named
from llamita.model.layers import LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM
from llamita.model.parts import LayerParts, parts_of
from llamita.plans.cpu.decode import bias_of, bits, packed_of
from llamita.plans.cpu.workspace import SPARE, Place, run

NORM = {dtype: named("elementwise", f"norm_{name}") for dtype, name in DTYPES.items()}
GATE = {dtype: named("elementwise", f"gate_{name}") for dtype, name in DTYPES.items()}
WIDEN = {dtype: named("prefill_attention", f"widen_{name}") for dtype, name in DTYPES.items()}
ATTEND = {dtype: named("prefill_attention", f"causal_{name}") for dtype, name in DTYPES.items()}
PAIRED = {
    dtype: named("prefill_attention_bf16", f"causal_pairs_{DTYPES[dtype]}") for dtype in (torch.float32, torch.bfloat16)
}
PAIR = named("prefill_attention_bf16", "pair_values")


class Reading:
    """Reads tokens into a cache and gives the logits of the last of each row.

    Must equal LlamaForCausalLM.forward of the same weights, up to the order of the sums. The residual stream is fp32;
    between products values are in the dtype of the weights, or fp32 where weights are packed.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._cache_dtype = model.dtype
        self._layers = [
            parts_of(layer, model.config, plan="the plan of the CPU's kernels") for layer in model.model.layers
        ]
        products = [module for layer in self._layers for module in layer.products]
        dtypes = {torch.float32 if packed_of(module) else module.weight.dtype for module in products}
        self._dtype = model.dtype if dtypes == {model.dtype} else torch.float32

    def run(self, ids: Tensor, cache: GrowingCache, first: Tensor | None, kept: int) -> Tensor:
        """The logits (B, kept, V) in fp32 of the last of ids (B, T), whose keys and values go into the cache.

        first: the first visible slot of each row (B,), or None where all are seen; positions count from there.
        """
        batch, tokens = ids.shape
        slot = cache.reserve(tokens, spare=SPARE)
        try:
            place = Place(self._model, batch, tokens, slot, cache.buffers[0][0].shape[2], first)
            x = self._model.model.embed_tokens(ids).float().flatten(0, 1).contiguous()  # (B * T, D)
            y = None
            for number, layer in enumerate(self._layers):
                y = self._layer(layer, x, y, place, cache.buffers[number])
            last = self._norm(self._model.model.norm, x, y, place, batch, tokens, kept)
        except BaseException:  # Ctrl-C: what was not written is not to be read
            cache.crop(slot)
            raise
        (logits,) = self._products((self._model.lm_head,), last, place, "l")
        return logits.view(batch, kept, -1)

    def _layer(
        self, layer: LayerParts, x: Tensor, y: Tensor | None, place: Place, room: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One layer; y is what is still to be added to x, and so is what comes back."""
        normed = self._norm(layer.input_norm, x, y, place, 1, len(x), len(x))
        q, k, v = self._products(layer.qkv, normed, place, "qkv")
        (y,) = self._products((layer.o,), self._attend(q, k, v, place, room), place, "y")
        normed = self._norm(layer.post_norm, x, y, place, 1, len(x), len(x))
        return self._mlp(layer, normed, place)

    def _mlp(self, mlp: LayerParts, x: Tensor, place: Place) -> Tensor:
        """The gated layer: gate and up in one go where they are alike, so that neither is ever written out."""
        gate, up, down = (packed_of(module) for module in (mlp.gate, mlp.up, mlp.down))
        is_plain = mlp.gate.bias is None and mlp.up.bias is None
        weights = [one.weight for one in (mlp.gate, mlp.up) if isinstance(one, nn.Linear)]
        if gate and up and down and gate.kind == up.kind and is_plain and gate.rows % 32 == 0 and len(x) >= ROWS:
            program, records = self._in_bytes(x, place)
            gated = place.room("gated", len(x) * gate.rows // 32 * Q8_BLOCK, dtype=torch.uint8)
            linear.add_gated(program, gate, up, records, gated, len(x))
            y = place.room("y", len(x), down.rows)
            linear.add_packed(program, down, gated, y, bias_of(mlp.down), len(x))
            program.run()
            return y
        if len(weights) == 2 and is_plain and len(x) > linear.FEW and self._takes_many(weights):
            gated = place.room("gated", len(x), len(weights[0]), dtype=torch.bfloat16)
            program = Program()
            linear.add_gated_many(program, weights[0].detach(), weights[1].detach(), x, gated)
            program.run()
        else:
            gated = self._gate(*self._products((mlp.gate, mlp.up), x, place, "gu"))
        return self._products((mlp.down,), gated, place, "y")[0]

    def _products(self, modules: Sequence[nn.Module], x: Tensor, place: Place, names: str) -> list[Tensor]:
        """x (rows, K) through some linear layers that all read it; `names` are those of the room for what comes out."""
        matrices = [packed_of(module) for module in modules]
        if all(matrices):
            return self._packed_products(modules, x, place, names)
        weights = [module.weight.detach() for module in modules if isinstance(module, nn.Linear)]
        if len(weights) < len(modules) or len(x) <= linear.FEW or not self._takes_many(weights):
            return [self._product(module, x) for module in modules]
        program, outs = Program(), []
        for module, weight, name in zip(modules, weights, names, strict=True):
            outs.append(place.room(name, len(x), len(weight), dtype=torch.bfloat16))
            linear.add_many(program, weight, x, outs[-1], bias_of(module), beside=len(outs) > 1)
        program.run()
        return outs

    def _takes_many(self, weights: Sequence[Tensor]) -> bool:
        return self._dtype == torch.bfloat16 and linear.takes_many(weights)

    def _packed_products(self, modules: Sequence[nn.Module], x: Tensor, place: Place, names: str) -> list[Tensor]:
        (program, records), outs = self._in_bytes(x, place), []
        for module, name in zip(modules, names, strict=True):
            packed = packed_of(module)
            assert packed is not None
            outs.append(place.room(name, len(x), packed.rows))
            linear.add_packed(program, packed, records, outs[-1], bias_of(module), len(x), beside=len(outs) > 1)
        program.run()
        return outs

    def _in_bytes(self, x: Tensor, place: Place) -> tuple[Program, Tensor]:
        """A program that begins by putting x (rows, K) into bytes, and the records of these."""
        program, records = Program(), place.room("records", x.numel() // 32 * Q8_BLOCK, dtype=torch.uint8)
        linear.add_quantize(program, x.float(), records)
        return program, records

    def _product(self, module: nn.Module, x: Tensor) -> Tensor:
        packed = packed_of(module)
        if packed is not None:
            return linear.linear(x, packed, bias_of(module)).to(self._dtype)
        assert isinstance(module, nn.Linear)
        if len(x) <= linear.FEW:
            return linear.few(x.float(), module.weight, module.bias)
        return F.linear(x.to(module.weight.dtype), module.weight, module.bias).to(self._dtype)

    def _norm(
        self, norm: LlamaRMSNorm, x: Tensor, y: Tensor | None, place: Place, batch: int, tokens: int, kept: int
    ) -> Tensor:
        """Add y to x in place, and normalize the last `kept` tokens of each row."""
        out = place.room("normed", batch * kept, x.shape[1], dtype=self._dtype)
        weight, epsilon = norm.weight.detach(), bits(norm.variance_epsilon)
        run(
            NORM[self._dtype], x, y, weight, out, x.shape[1], epsilon, 0, tokens, kept, NUMBERS[weight.dtype],
            chunks=batch * kept,
        )  # fmt: skip
        return out

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        size, columns = gate.numel(), 4096
        run(GATE[self._dtype], gate, up, gate, columns, size, 0, chunks=-(-size // columns))
        return gate

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, place: Place, room: tuple[Tensor, Tensor]) -> Tensor:
        """Turn and store the new heads, and let them look at what is before them: (rows, N * H)."""
        turned = place.room("turned", len(q) + QUERIES - 1, q.shape[1])
        out = place.room("o", *q.shape, dtype=self._dtype)
        program = Program()
        turn = named("prefill_attention", f"turn_{DTYPES[self._dtype]}_{DTYPES[self._cache_dtype]}")
        program.add(turn, q, k, v, place.cosines, place.sines, *room, turned, place.sizes, chunks=len(q))
        size = QUERIES if self._cache_dtype == torch.bfloat16 else 16
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
