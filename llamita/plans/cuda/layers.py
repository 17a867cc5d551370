"""The plan `cuda`: a finished model on our Triton kernels, with fewer and larger steps in a layer.

`accelerate(model)` swaps its layers; `plans.cuda.graphs` then records a `KernelStep` over a `KernelCache`. The
arithmetic and its order are those of the layers that it replaces; products accumulate in fp32.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.attention import backend
from llamita.attention.mask import Mask
from llamita.cache.static import StaticCache
from llamita.context.cached import Cached
from llamita.context.protocol import Context, Rotation
from llamita.errors import UnsupportedError
from llamita.kernels.cuda import operations
from llamita.kernels.cuda.linear import linear
from llamita.kernels.cuda.planes import Planes
from llamita.model.layers import LlamaRMSNorm
from llamita.model.llama import LlamaForCausalLM
from llamita.model.parts import LayerParts, parts_of, unknown
from llamita.model.plan import PlanModule, check
from llamita.model.rope import Rotation as Angles
from llamita.model.stored import StoredWeight
from llamita.model.surgery import replace


def accelerate(model: LlamaForCausalLM) -> None:
    """Put the kernels into a model on a GPU, permanently: its parameters get other names.

    Raises UnsupportedError if Triton or the GPU is missing, and for layers that are not plain Llama's.
    """
    operations.require(next(model.parameters()).device)
    install(model)


def install(model: LlamaForCausalLM) -> None:
    """Do the same as `accelerate` on any device; without a GPU the operations run their references."""
    model.model.layers = nn.ModuleList([KernelLayer(parts) for parts in _known(model)])
    replace(model, "model.norm", _norm)
    if type(model.lm_head) is nn.Linear:
        replace(model, "lm_head", lambda head: merged([head]))


def unsupported_reason(model: LlamaForCausalLM) -> str | None:
    """The reason why `accelerate` would refuse a model, or None; the model is not changed."""
    try:
        operations.require(model.device)
        _known(model)
    except UnsupportedError as error:
        return str(error)
    return None


def _known(model: LlamaForCausalLM) -> list[LayerParts]:
    """The parts of every layer; raises UnsupportedError for what the kernels do not know."""
    if (reason := unknown(model.config, any_rotary=True)) is not None:
        raise UnsupportedError(f"this model cannot have the GPU's layers: {reason}; use it without")
    check(model, "cuda", model.modules())
    return [parts_of(one, model.config, plan="the GPU's plan") for one in model.model.layers]


class FewRowsLinear(nn.Module):
    """x (..., K) times one weight, or several that are concatenated: (..., N). One weight stays the same parameter."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if len(linears) == 1:
            self.weight = linears[0].weight
        else:
            weight = torch.cat([linear.weight.detach() for linear in linears])
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("bias", torch.cat([bias.detach() for bias in biases]) if biases else None)
        self.out_features, self.in_features = self.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Multiply, with our kernel if x has few rows."""
        flat = x.reshape(-1, x.shape[-1])
        bias = self.bias
        assert bias is None or isinstance(bias, Tensor)
        if flat.shape[0] > operations.MOST_ROWS:
            return F.linear(x, self.weight, bias)
        return operations.few_rows(flat, self.weight, bias).view(*x.shape[:-1], -1)


class BlocksLinear(nn.Module):
    """x (..., K) times one quantized matrix, or several of one format that are concatenated: (..., N)."""

    def __init__(self, planes: Sequence[Planes], biases: Sequence[Tensor | None]) -> None:
        super().__init__()
        parts = (
            None if part[0] is None else torch.cat(part) for part in zip(*(p.tensors for p in planes), strict=True)
        )
        self.planes = Planes(*parts, bits=planes[0].bits, zero=planes[0].zero)  # type: ignore[arg-type]
        given = [bias.detach() for bias in biases if bias is not None]
        self.register_buffer("bias", torch.cat(given) if given else None)
        self.out_features, self.in_features = self.planes.shape

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        bias = self.bias
        assert bias is None or isinstance(bias, Tensor)
        return linear(x, self.planes, bias)


class ConcatLinear(nn.Module):
    """Several linear layers that cannot be one matrix; it concatenates their results."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by each."""
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def merged(layers: Sequence[Any]) -> nn.Module:
    """One module for several linear layers: it concatenates their results, by one product if they allow that."""
    has_bias = {getattr(layer, "bias", None) is not None for layer in layers}
    if len(has_bias) == 1 and all(type(layer) is nn.Linear for layer in layers):
        return FewRowsLinear(layers)
    planes = [found for layer in layers if (found := _planes(layer)) is not None]
    if len(has_bias) == 1 and len(planes) == len(layers) and len(set(map(_layout, planes))) == 1:
        return BlocksLinear(planes, [layer.bias for layer in layers])
    return layers[0] if len(layers) == 1 else ConcatLinear(layers)


def _planes(layer: nn.Module) -> Planes | None:
    """The planes of a quantized layer; None for another."""
    found = layer.kernel_view() if isinstance(layer, StoredWeight) else None
    return found if isinstance(found, Planes) else None


def _layout(planes: Planes) -> tuple[Any, ...]:
    """What two matrices must share to be concatenated."""
    return planes.bits, planes.zero, *(None if part is None else (part.shape[1], part.dtype) for part in planes.tensors)


class KernelNorm(nn.Module):
    """LlamaRMSNorm as one kernel."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalize: (..., D) -> (..., D)."""
        return operations.rms_norm(hidden_states, self.weight, self.eps)


class KernelLayer(PlanModule):
    """LlamaDecoderLayer in nine kernels and an attention."""

    plan = "cuda"

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.layer_idx, self.head_dim = parts.index, parts.head_dim
        self.heads = [int(cast("Any", one).out_features) // self.head_dim for one in parts.qkv]
        self.qkv_proj, self.output = merged(parts.qkv), merged([parts.o])
        self.gate_up_proj, self.down = merged([parts.gate, parts.up]), merged([parts.down])
        self.input_layernorm = KernelNorm(parts.input_norm)
        self.post_attention_layernorm = KernelNorm(parts.post_norm)

    def forward(self, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
        """Both halves read the residual stream through a norm and add to it: (B, T, D) -> (B, T, D)."""
        after = self.post_attention_layernorm
        attended = self._attend(self.input_layernorm(hidden_states), rotation, context)
        normed, hidden_states = operations.add_rms_norm(hidden_states, attended, after.weight, after.eps)
        gate, up = self.gate_up_proj(normed).chunk(2, dim=-1)
        return hidden_states + self.down(operations.silu_gate(gate, up))

    def _attend(self, normed: Tensor, rotation: Rotation, context: Context) -> Tensor:
        q, k, v = self.qkv_proj(normed).unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=2)
        return self.output(context.attend(q, k, v, rotation, layer=self.layer_idx).flatten(-2))


def _norm(norm: nn.Module) -> KernelNorm:
    assert isinstance(norm, LlamaRMSNorm)
    return KernelNorm(norm)


class KernelCache(StaticCache):
    """A StaticCache that a kernel writes into."""

    def claim(self, tokens: int) -> Tensor:
        """The first free slot, (), and count the `tokens` after it as filled; the kernel fills them in every layer."""
        start = self.offset
        self._filled += tokens
        return start


class FusedCached(Cached):
    """Continues from a KernelCache; one kernel rotates and stores. Must equal Cached over a StaticCache."""

    def __init__(self, positions: Tensor, mask: Mask, cache: KernelCache, start: Tensor, **given: Any) -> None:
        super().__init__(positions, mask, cache, **given)
        self._start = start

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Rotate, store and attend: q (B, T, N, H), k and v (B, T, K, H) -> (B, T, N, H)."""
        assert isinstance(rotation, Angles)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        q = operations.rotate_and_store(q, k, v, rotation.cos, rotation.sin, self._start, keys, values)
        return self.attend_to(q.transpose(1, 2), keys, values)


class KernelStep:
    """A decode step for rows without padding over a KernelCache, which a CUDA graph can replay.

    Raises UnsupportedError for rotary types whose frequencies depend on the length.
    """

    def __init__(self, model: LlamaForCausalLM, cache: KernelCache) -> None:
        if model.config.rope_parameters.depends_on_length:
            kind = model.config.rope_parameters.rope_type
            raise UnsupportedError(f'rotary type "{kind}" rotates stored keys again in every step: use PlainStep')
        check(model, "graphs")
        self._model = model
        self._cache = cache

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, V) of the last."""
        config, cache, length = self._model.config, self._cache, tokens.shape[1]
        cache.visible_range(length)
        start = cache.claim(length)
        positions = (start + torch.arange(length, device=tokens.device))[None]
        mask = Mask(length, cache.capacity, device=tokens.device, offset=start, window=config.sliding_window)
        attend = backend(config.attn_implementation)
        context = FusedCached(positions, mask, cache, start, backend=attend, scale=config.softmax_scale)
        return self._model(tokens, context=context, logits_to_keep=1).logits[:, -1]
