"""torch.compile as a plan, which can be undone."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from llamita.cache.quantized import QuantizedCache
from llamita.context.protocol import Context, Rotation
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan as slot
from llamita.model.layers import LlamaDecoderLayer
from llamita.model.pretrained import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)
Backend = str | Callable[..., Any]
# How many graphs one function may have. Lengths need none of their own, but kinds of calls do: one token or several,
# one row or several, with or without a mask, gradients, a cache of each class. torch stops at 8.
MOST_GRAPHS = 64


def compile_model(model: Model, plan: str, *, backend: Backend = "inductor", mode: str | None = None) -> Model:
    """Compile a finished model with torch.compile, by one of PLANS; returns the model, changed in place.

    "off" undoes it. "regional" compiles what a layer does before and after attention: one graph each, which all
    layers share, quick to compile and good for any context, cache and backend, as these stay outside. "full" compiles
    the whole forward: slower to compile, for models called with tensors, a DynamicCache or a StaticCache; over a
    QuantizedCache, whose groups no one graph can hold, it warns once and runs plainly.
    No plan breaks a graph, or compiles again for another length. Parameters may be changed and moved afterwards;
    modules may be swapped too, which compiles again. Compiled kernels round differently from plain ones.

    backend, mode: those of torch.compile. The first call of a kind waits for the compiler: C++ on the CPU, Triton on
    CUDA.
    Raises UsageError for an unknown plan, and UnsupportedError for a model that another plan or the batch-invariant
    mode holds.
    """
    if plan not in PLANS:
        raise UsageError(f"compile is {plan!r}: use one of {', '.join(PLANS)}")
    if plan == "off":
        slot.remove(model, "compile")
        return model
    if model.config.attn_implementation == "fixed":
        slot.refuse("invariant", "compile")
    slot.check(model, "compile", model.modules())
    slot.apply(model, "compile", PLANS[plan](model, {"backend": backend, "mode": mode}))
    return model


class CompiledForward(slot.StandIn):
    """Replaces a module's forward by its compiled version.

    The module is an argument of the compiled function, not a part of it, so a deep copy runs its own weights.
    """

    plan = "compile"

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        super().__init__(module)
        self._run = _compiled(type(module).forward, options)
        self._has_warned = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the module's own forward."""
        if any(isinstance(value, QuantizedCache) for value in (*args, *named.values())):
            return self._warned(*args, **named)
        return self._run(self.module, *args, **named)

    def _warned(self, *args: Any, **named: Any) -> Any:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                'a whole model cannot be compiled over a QuantizedCache, and runs plainly: use compile="regional"',
                stacklevel=4,
            )
        return self.plain(*args, **named)


class CompiledLayerParts(slot.StandIn):
    """Replaces a layer's forward: it compiles what comes before and after attention, and leaves attention as it is."""

    plan = "compile"
    module: LlamaDecoderLayer

    def __init__(self, layer: LlamaDecoderLayer, options: dict[str, Any]) -> None:
        super().__init__(layer)
        self._before = _compiled(before, options)
        self._after = _compiled(after, options)

    def __call__(self, hidden_states: Tensor, rotation: Rotation, context: Context) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = self._before(self.module, hidden_states)
        attended = context.attend(q, k, v, rotation, layer=self.module.self_attn.layer_idx)
        return self._after(self.module, hidden_states, attended)


def before(layer: LlamaDecoderLayer, hidden_states: Tensor) -> tuple[Tensor, ...]:
    """The part of a layer before attention: (B, T, D) -> q (B, T, N, H), k and v (B, T, K, H)."""
    return layer.self_attn.heads(layer.input_layernorm(hidden_states))


def after(layer: LlamaDecoderLayer, hidden_states: Tensor, attended: Tensor) -> Tensor:
    """The part of a layer after attention: (B, T, D) and (B, T, N, H) -> (B, T, D)."""
    return layer.finish(hidden_states, layer.self_attn.join(attended))


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    options = {**options, "fullgraph": True, "dynamic": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:  # not in every torch that we take
        options["recompile_limit"] = MOST_GRAPHS
    return torch.compile(function, **options)


def _regional(model: PreTrainedModel, options: dict[str, Any]) -> list[slot.StandIn]:
    stand_ins: list[slot.StandIn] = []
    for layer in cast("nn.ModuleList", model.base_model.layers):
        if not isinstance(layer, LlamaDecoderLayer):
            raise UnsupportedError(
                f"a {type(layer).__name__} is no plain Llama layer, whose halves are known: use compile='full'"
            )
        stand_ins.append(CompiledLayerParts(layer, options))
    return stand_ins


def _full(model: PreTrainedModel, options: dict[str, Any]) -> list[slot.StandIn]:
    return [CompiledForward(model, options)]


PLANS: dict[str, Callable[[PreTrainedModel, dict[str, Any]], list[slot.StandIn]]] = {
    "off": lambda model, options: [],
    "regional": _regional,
    "full": _full,
}
