"""Train faster, in less memory: layers whose backward passes are written out, with half the passes over memory.

Equals the plain layers: forward bit for bit, and gradients up to the order of sums; but in bf16, where our kernels know
all of a layer, up to rounding (`llamita.plans.training_products`). A plain layer keeps what each operation read; these
keep the residual stream, queries, keys, values, gates and what attention gives, and compute norms, activations and bf16
copies of weights again, which no matrix product needs. Attention is by our own kernels on CPUs, which round otherwise
in bf16 (`llamita.attention.trained`).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llamita.attention import sdpa, trained
from llamita.attention.autocast import compute_dtype
from llamita.config import LlamaConfig
from llamita.context.causal import Causal
from llamita.context.protocol import Context, Rotation
from llamita.errors import UnsupportedError
from llamita.kernels.cpu import training as kernels
from llamita.kernels.cpu.training import COLUMNS
from llamita.model import plan
from llamita.model.chunked_loss import is_plain
from llamita.model.factors import Factors, factors_of
from llamita.model.layers import LlamaDecoderLayer, LlamaRMSNorm, at_least_fp32
from llamita.model.parts import PRODUCTS, SILU, LayerParts, parts_of
from llamita.plans.cpu.called import is_in_function_mode
from llamita.plans.cpu.parts import CALLED, functions_of, is_own
from llamita.plans.training_products import Gated, Given, Normed, is_known, products


def enable(model: nn.Module, layers: Sequence[nn.Module], config: LlamaConfig) -> None:
    """Let the layers of a model train by written-out backward passes; evaluation stays as it is, but for attention.

    A layer with adapters, biases, hooks or shards keeps its plain forward with the attention of this plan. Raises
    UnsupportedError for layers that are no plain Llama's, for another activation than SiLU, and where another plan
    holds the model.
    """
    if config.hidden_act not in SILU or config.numerics != "hf":
        raise UnsupportedError(
            f"the training plan knows SiLU and the numerics of hf, not {config.hidden_act} and {config.numerics}: "
            "train without it"
        )
    plan.apply(model, "training", [TrainedLayer(layer, config) for layer in layers])


class TrainedLayer(plan.StandIn):
    """A layer's forward by the functions below, while gradients are wanted."""

    plan = "training"
    module: LlamaDecoderLayer

    def __init__(self, layer: nn.Module, config: LlamaConfig) -> None:
        super().__init__(layer)
        self.parts = parts_of(layer, config, plan="the training plan")
        self.made_of = self._made_of()
        self.is_own = all(is_own(one, type(one)) for one in layer.modules() if one is not layer)

    def __call__(self, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        context = trained_by_kernels(context)
        if not (torch.is_grad_enabled() and self._is_current()):
            return self.plain(hidden_states, rotation, context)
        factors = [one for one in map(factors_of, self.parts.products) if one is not None]
        if len(factors) == len(PRODUCTS) and is_known(hidden_states, factors):
            return forward_by_kernels(self.parts, factors, hidden_states, rotation, context)
        if all(map(is_plain, self.parts.products)):
            return forward(self.parts, hidden_states, rotation, context)
        return self.plain(hidden_states, rotation, context)

    def _is_current(self) -> bool:
        """Whether the layer is made as in the beginning, and nothing else runs when its parts are called."""
        if not self.is_own or self._made_of() != self.made_of or CALLED.has_changed() or is_in_function_mode():
            return False
        return not any(plan.has_hooks(one) for one in self.module.modules() if one is not self.module)

    def _made_of(self) -> list[object]:
        """What a pass goes through, all of which may change: modules, their classes and functions, attributes."""
        layer, inner = self.module, [one for one in self.module.modules() if one is not self.module]
        functions = [getattr(one, name) for one in inner for name in functions_of(type(one))]
        facts = [vars(one).get(name) for one in inner for name in ("act_fn", "head_dim", "layer_idx")]
        return [*inner, *map(type, inner), layer.finish, *functions, *facts]


def forward_by_kernels(
    parts: LayerParts, factors: Sequence[Factors], hidden_states: Tensor, rotation: Rotation, context: Context
) -> Tensor:
    """The same as `forward` with the factors of all products, in their order."""
    q, k, v, o, gate, up, down = factors
    heads = products(normed(parts.input_norm), (q, k, v), hidden_states, parts.input_norm.weight)
    attended = attend(parts, heads, rotation, context)
    hidden_states = hidden_states + products(Given(), (o,), attended)[0]
    both = products(normed(parts.post_norm), (gate, up), hidden_states, parts.post_norm.weight)  # (B, T, F)
    return hidden_states + products(Gated(), (down,), *both)[0]


def forward(parts: LayerParts, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
    """A decoder layer: (B, T, D) -> (B, T, D)."""
    heads = normed_products(hidden_states, parts.input_norm, *parts.qkv)
    attended = attend(parts, heads, rotation, context)
    hidden_states = hidden_states + cast("Tensor", Product.apply(attended, parts.o.weight))
    gate, up = normed_products(hidden_states, parts.post_norm, parts.gate, parts.up)  # (B, T, F)
    return hidden_states + cast("Tensor", GatedProduct.apply(gate, up, parts.down.weight))


def attend(parts: LayerParts, heads: Sequence[Tensor], rotation: Rotation, context: Context) -> Tensor:
    """Attention of q, k and v, (B, T, heads * H) each: (B, T, N * H)."""
    q, k, v = (one.unflatten(-1, (-1, parts.head_dim)) for one in heads)  # (B, T, N, H), (B, T, K, H) twice
    return context.attend(q, k, v, cast("Rotation", TrainedRotation(rotation)), layer=parts.index).flatten(-2)


def trained_by_kernels(context: Context) -> Context:
    """The context, whose attention is by our kernels where its backend is torch's."""
    if isinstance(context, Causal) and context.backend is sdpa.attend:
        return context.by(trained.attend)
    return context


def normed(norm: LlamaRMSNorm) -> Normed:
    """The norm as a source of products."""
    return Normed(norm.variance_epsilon)


def normed_products(x: Tensor, norm: Any, *products: nn.Module) -> tuple[Tensor, ...]:
    """The products of normed x (..., D) with some matrices."""
    outs: Any = NormedProducts.apply(x, norm.weight, norm.variance_epsilon, *(one.weight for one in products))
    return outs


class NormedProducts(torch.autograd.Function):
    """RMSNorm, then products that share its result; keeps x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, *weights: Tensor) -> tuple[Tensor, ...]:
        """x (..., D), scale (D,), weights (out, D) -> (..., out) each."""
        ctx.dtype = compute_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = at_least_fp32(x)
            rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            normed = (scale * (wide * rstd).to(x.dtype)).to(ctx.dtype)
            outs = tuple(F.linear(normed, weight.to(ctx.dtype)) for weight in weights)
        ctx.save_for_backward(x, scale, rstd, *weights)
        return outs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of x, scale and weights."""
        x, scale, rstd, *weights = ctx.saved_tensors
        unit = (at_least_fp32(x) * rstd).flatten(0, -2)  # (n, D)
        normed = (scale * unit.to(x.dtype)).to(ctx.dtype)
        flat = [one.flatten(0, -2) for one in d_outs]
        wanted = ctx.needs_input_grad[3:]
        d_weights = [
            (one.t() @ normed).to(weight.dtype) if is_wanted else None
            for one, weight, is_wanted in zip(flat, weights, wanted, strict=True)
        ]
        del normed
        d_normed = at_least_fp32(products_sum(flat, [weight.to(ctx.dtype) for weight in weights]))
        d_unit = d_normed * unit
        d_scale = d_unit.sum(0).to(scale.dtype) if ctx.needs_input_grad[1] else None
        mean = torch.mv(d_unit, scale.to(d_unit.dtype)).div_(unit.shape[-1])[:, None]
        d_x = d_normed.mul_(scale).addcmul_(unit, mean, value=-1).mul_(rstd.flatten(0, -2))
        return d_x.to(x.dtype).view(x.shape), d_scale, None, *d_weights


class Product(torch.autograd.Function):
    """A product with one matrix, whose copy in autocast's dtype is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x (..., K), weight (out, K) -> (..., out)."""
        ctx.dtype = compute_dtype(x)
        ctx.save_for_backward(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(ctx.dtype), weight.to(ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of x and weight."""
        x, weight = ctx.saved_tensors
        return product_backward(d_out, x, weight, ctx.needs_input_grad[1], ctx.dtype)


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, then a product; keeps gate and up alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """gate and up (..., F), weight (D, F) -> (..., D)."""
        ctx.dtype = compute_dtype(gate)
        ctx.save_for_backward(gate, up, weight)
        with torch.autocast(gate.device.type, enabled=False):
            return F.linear(F.silu(gate).mul_(up).to(ctx.dtype), weight.to(ctx.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of gate, up and weight."""
        gate, up, weight = ctx.saved_tensors
        active = F.silu(gate)
        d_product, d_weight = product_backward(d_out, active * up, weight, ctx.needs_input_grad[2], ctx.dtype)
        d_up = active.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(up), gate)
        return d_gate, d_up, d_weight


class Rotate(torch.autograd.Function):
    """Rotary positions, rounded once to the dtype of attention; backward rotates the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, heads, H), angles (B, T, 1, H)."""
        dtype = compute_dtype(x)
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return rotated(x, cos, sin, 1.0).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient of x."""
        cos, sin = ctx.saved_tensors
        return rotated(d_out, cos, sin, -1.0).to(ctx.dtype), None, None


class TrainedRotation:
    """A rotation by `Rotate`. A plain class, as `Rotation` is."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.depends_on_length = rotation.depends_on_length

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (B, T, heads, H) by the angles of its positions."""
        rotation: Any = self.rotation
        return cast("Tensor", Rotate.apply(x, rotation.cos, rotation.sin))

    def at(self, positions: Tensor) -> "TrainedRotation":
        """The rotation of the same frequencies at other positions (B, S)."""
        return TrainedRotation(self.rotation.at(positions))


def rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """x (B, T, heads, H) rotated by angles (B, T, 1, H) times a sign, by our kernel where it knows it."""
    rows, tokens, _, width = x.shape
    is_known = x.dtype == torch.bfloat16 and cos.dtype == torch.float32 and not width % COLUMNS
    if not (is_known and cos.shape[-1] == width and kernels.is_known(x) and kernels.has_pairs()):
        return rotated_by_torch(x, cos, sin if sign > 0 else -sin)
    cos, sin = (one.expand(rows, tokens, 1, width).reshape(-1, width).contiguous() for one in (cos, sin))
    return kernels.rotated(x.flatten(0, 1).contiguous(), cos, sin, sign).view(x.shape)


def rotated_by_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + rotate_half(x) * sin, in the wider dtype of x and angles, without the tensors in between."""
    half = x.shape[-1] // 2
    x = x.to(torch.promote_types(x.dtype, cos.dtype))
    out = x * cos
    out[..., :half] -= x[..., half:] * sin[..., :half]
    out[..., half:] += x[..., :half] * sin[..., half:]
    return out


def product_backward(
    d_out: Tensor, x: Tensor, weight: Tensor, wants_weight: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x (..., K) and weight (out, K) in x @ weight.T, from that of the product (..., out)."""
    d_weight = None
    if wants_weight:
        d_weight = (d_out.flatten(0, -2).t() @ x.flatten(0, -2).to(dtype)).to(weight.dtype)
    return (d_out @ weight.to(dtype)).to(x.dtype), d_weight


def products_sum(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The sum of left[i] @ right[i]: (n, out_i) and (out_i, D) -> (n, D)."""
    total = left[0] @ right[0]
    for one, other in zip(left[1:], right[1:], strict=True):
        total.addmm_(one, other)
    return total
