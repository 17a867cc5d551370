"""LoRA by surgery: layers get small trainable matrices, and their own weights are frozen (arXiv:2106.09685)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from llamita.adapters.config import ALL_LINEAR, LoraConfig
from llamita.adapters.layer import LoraLayer, base_of, pair_kind
from llamita.adapters.pair import LoraPair
from llamita.errors import UnsupportedError, UsageError
from llamita.model.stored import StoredMatrix, StoredWeight
from llamita.model.surgery import replace


def add_lora(model: nn.Module, config: LoraConfig, name: str = "default") -> list[str]:
    """Give the model an adapter of this name, and freeze all weights but those of adapters; returns the layers' names.

    The adapter is active if it is the first; `set_adapter` chooses among several. Its matrices are in fp32 where the
    base weight has fewer bits. A quantized base works too (QLoRA): `llamita.quant.surgery.quantize` the model first.
    Raises UsageError for targets that are not there or are no linear layers or embeddings, and for a name that is
    taken, and UnsupportedError for DoRA on a quantized base or an embedding; the model then stays as it is.
    """
    _check_name(model, name)
    names = targets(model, config)
    active = active_adapters(model) if lora_layers(model) else (name,)
    like = next(model.parameters())
    pairs = {target: _pair(model.get_submodule(target), target, config, like) for target in names}
    for target, pair in pairs.items():
        _layer(model, target).add(name, config, pair)
    for layer in lora_layers(model).values():
        layer.active = active
    trained = {id(parameter) for layer in lora_layers(model).values() for parameter in layer.pairs.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)
    return names


def targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The full names of the layers that a config names, in order; raises what `add_lora` does."""
    if config.target_modules == ALL_LINEAR:
        layers = {name: base_of(model.get_submodule(name)) for name in layers_to_adapt(model)}
        is_meant = {
            name: type(base) is not nn.Embedding and not name.endswith("lm_head") for name, base in layers.items()
        }
        return [name for name in layers if is_meant[name]]
    found = replace(model, config.target_modules, lambda module: module)
    for name in found:
        if not _is_adaptable(module := model.get_submodule(name)):
            raise UsageError(
                f"{name} is a {type(module).__name__}, and LoRA adapts linear layers and embeddings: name those, or "
                f"{ALL_LINEAR!r}"
            )
    return found


def layers_to_adapt(model: nn.Module) -> list[str]:
    """The full names of the layers that can have adapters, in order."""
    inside = tuple(f"{name}." for name in lora_layers(model))
    return [name for name, module in model.named_modules() if _is_adaptable(module) and not name.startswith(inside)]


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have adapters, by full name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapters(model: nn.Module) -> dict[str, LoraConfig]:
    """The adapters of a model by name, with their configs."""
    return {name: config for layer in lora_layers(model).values() for name, config in layer.configs.items()}


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the active adapters."""
    return next((layer.active for layer in lora_layers(model).values()), ())


def set_adapter(model: nn.Module, *names: str) -> None:
    """Let these adapters compute, summed in this order, and no others; without names the base model alone computes.

    Raises UsageError for an unknown name, and while adapters are merged.
    """
    _check_unmerged(model, "chosen")
    known = adapters(model)
    for name in names:
        if name not in known:
            raise UsageError(f"no adapter is named {name!r}: the model has {', '.join(known) or 'none'}")
    for layer in lora_layers(model).values():
        layer.active = names


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let the base model alone compute in this block."""
    active = active_adapters(model)
    set_adapter(model)
    try:
        yield
    finally:
        set_adapter(model, *active)


def merge_adapters(model: nn.Module) -> None:
    """Add the active adapters to the base weights: the same function without the adapters' cost.

    The base weights stay in memory, for `unmerge_adapters`, until `unload_adapters`. Raises UsageError without adapters
    or while some are merged, and UnsupportedError for a quantized base, or a head and an embedding that share their
    weight.
    """
    for layer in _mergeable_layers(model).values():
        layer.merge()


def unmerge_adapters(model: nn.Module) -> None:
    """Put the base weights back, bit for bit; the adapters compute again. Raises UsageError if none are merged."""
    merged = [layer for layer in lora_layers(model).values() if layer.unmerged is not None]
    if not merged:
        raise UsageError("no adapters are merged: there is nothing to unmerge")
    for layer in merged:
        layer.unmerge()


def unload_adapters(model: nn.Module) -> None:
    """Take all adapters off: the plain layers are back, frozen, with the merged weights if they are merged."""
    for name, layer in lora_layers(model).items():
        put(model, name, layer.base_layer)


def merge_and_unload(model: nn.Module) -> None:
    """Merge the active adapters and take all off, one layer after another: no more than one has its weight twice.

    Raises what `merge_adapters` does.
    """
    for name, layer in _mergeable_layers(model).items():
        layer.merge()
        layer.unmerged = None
        put(model, name, layer.base_layer)


def dequantize_adapted(model: nn.Module, dtype: torch.dtype) -> None:
    """Take quantized linear layers with adapters out of their blocks, in which merging would round once more."""
    for layer in lora_layers(model).values():
        base = layer.base_layer
        if isinstance(base, StoredWeight) and hasattr(base, "bias"):  # an embedding has none
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(cast("StoredMatrix", base.matrix).dequantize(dtype), requires_grad=False)
            plain.bias = cast("nn.Parameter", base.bias)
            layer.base_layer = plain.train(base.training)


def _pair(layer: nn.Module, target: str, config: LoraConfig, like: Tensor) -> LoraPair:
    base = base_of(layer)
    weight = base._parameters.get("weight")
    dtype = torch.float32 if weight is None or weight.dtype.itemsize < 4 else weight.dtype
    like = torch.empty(0, dtype=dtype, device=like.device if weight is None else weight.device)
    return pair_kind(base, config)(config, target, base, like)


def _layer(model: nn.Module, target: str) -> LoraLayer:
    """The layer of this name, which becomes one with adapters where it is none."""
    layer = model.get_submodule(target)
    if not isinstance(layer, LoraLayer):
        layer = LoraLayer(layer).train(layer.training)
        put(model, target, layer)
    return layer


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of this name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)


def _is_adaptable(module: nn.Module) -> bool:
    is_quantized = isinstance(module, StoredWeight) and hasattr(module, "in_features")
    return isinstance(module, LoraLayer) or type(module) in (nn.Linear, nn.Embedding) or is_quantized


def _check_name(model: nn.Module, name: str) -> None:
    if not name or "." in name:
        raise UsageError(f"an adapter cannot be named {name!r}: use a word without dots")
    if name in adapters(model):
        raise UsageError(f"the model has an adapter named {name!r} already: choose another name")
    _check_unmerged(model, "added")


def _check_unmerged(model: nn.Module, what: str) -> None:
    if any(layer.unmerged is not None for layer in lora_layers(model).values()):
        raise UsageError(f"no adapter can be {what} while adapters are merged: call unmerge_adapters(model) first")


def _mergeable_layers(model: nn.Module) -> dict[str, LoraLayer]:
    layers = lora_layers(model)
    if not layers:
        raise UsageError("the model has no adapters to merge: call load_adapter or add_lora first")
    _check_unmerged(model, "merged")
    for name, layer in layers.items():
        _check_mergeable(model, name, layer)
    return layers


def _check_mergeable(model: nn.Module, name: str, layer: LoraLayer) -> None:
    weight = layer.base_layer._parameters.get("weight")
    if weight is None:
        raise UnsupportedError(
            f"{name} is quantized, and merging would round it once more: merge into the original model, then quantize"
        )
    if sum(one is weight for module in model.modules() for one in module._parameters.values()) > 1:
        raise UnsupportedError(
            f"{name} shares its weight with another layer, which merging would change: leave the adapter unmerged"
        )
