"""Quantize a finished model: its projections, its embedding and its head become quantized layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llamita.errors import UnsupportedError, UsageError
from llamita.kernels.blocks import FORMATS
from llamita.model.pretrained import PreTrainedModel
from llamita.quant import recipes
from llamita.quant.block_matrix import from_raw
from llamita.quant.int8_matrix import INT8, Int8Rows
from llamita.quant.linear import QuantizedEmbedding, QuantizedLinear
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.recipes import Recipe


@dataclass(frozen=True)
class QuantizationChoice:
    """The format that a recipe chooses for a weight; None leaves the weight as it is."""

    names: tuple[str, ...]  # of the modules that share the weight
    shape: tuple[int, int]
    format_name: str | None


Observer = Callable[[QuantizationChoice, Tensor, QuantizedMatrix], None]  # gets each weight (N, K) and its result


def choices(model: PreTrainedModel, recipe: Recipe) -> list[QuantizationChoice]:
    """Choose a format for every embedding and linear layer of the model, in order.

    The heads of classifiers are left out: they are small, and they are trained.
    Raises UsageError for an unknown recipe, UnsupportedError for a quantized model.
    """
    if is_quantized(model):
        raise UnsupportedError("this model is quantized already: quantize the original model")
    config = model.config
    return [
        QuantizationChoice(names, shape, recipes.choose(recipe, names[0], shape, config, is_head="lm_head" in names))
        for names, shape in _weights(model)
    ]


def quantize(model: PreTrainedModel, recipe: Recipe, *, observer: Observer | None = None) -> list[QuantizationChoice]:
    """Quantize a model in place by a recipe, given by name or as a mapping of globs to formats.

    The other parameters are frozen: the model can run, and adapters can be trained on it. Returns the choices.
    observer: is called with each weight before the model drops it. Memory: one weight at a time exists twice.
    Raises UsageError (an unknown recipe, weights that are not finite), UnsupportedError (quantized already).
    """
    chosen = choices(model, recipe)
    for choice in chosen:
        if choice.format_name is not None:
            _replace(model, choice, choice.format_name, observer)
    freeze(model)
    return chosen


def quantize_weight(format_name: str, weight: Tensor) -> QuantizedMatrix:
    """Quantize weights (N, K) to a block format or to int8."""
    if format_name == INT8:
        return Int8Rows.from_weight(weight)
    return from_raw(format_name, FORMATS[format_name].quantize(weight))


def quantized(name: str, weight: Tensor, format_name: str) -> QuantizedMatrix:
    """The weight (N, K) of the module of this name in a format. Raises UsageError where it is not finite."""
    extremes = torch.stack(
        torch.aminmax(weight)
    )  # NaN if any weight is; isfinite of all weights takes 30 times as long
    if not extremes.isfinite().all():
        raise UsageError(f"{name} has weights that are not finite, which no format can hold: repair the checkpoint")
    return quantize_weight(format_name, weight)


def put(model: nn.Module, names: tuple[str, ...], weight: QuantizedMatrix) -> None:
    """Replace the linear or embedding modules `names` by quantized ones that share `weight`.

    names: full names of modules. An embedding keeps the dtype of its rows.
    """
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, _built(model.get_submodule(name), weight))


def freeze(model: PreTrainedModel) -> None:
    """Freeze the parameters of a quantized model. Training it without adapters then raises UnsupportedError."""
    model.requires_grad_(False)
    model.register_forward_pre_hook(_refuse_training)


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of the model is quantized."""
    return any(True for _ in quantized_layers(model))


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear | QuantizedEmbedding]]:
    """The quantized layers by name, tied ones included."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            yield name, module


def _replace(model: PreTrainedModel, choice: QuantizationChoice, format_name: str, observer: Observer | None) -> None:
    weight = cast("Tensor", model.get_submodule(choice.names[0]).weight).detach()
    matrix = quantized(choice.names[0], weight, format_name)
    if observer is not None:
        observer(choice, weight, matrix)
    put(model, choice.names, matrix)


def _weights(model: PreTrainedModel) -> Iterator[tuple[tuple[str, ...], tuple[int, int]]]:
    """For each weight the names of its modules, and its shape; a tied embedding and head are one weight."""
    owners: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, int]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        is_part = "layers." in name or name.endswith(("embed_tokens", "lm_head"))
        if is_part and type(module) in (nn.Linear, nn.Embedding):
            weight = cast("Tensor", module.weight)
            owners.setdefault(id(weight), []).append(name)
            shapes[id(weight)] = (weight.shape[0], weight.shape[1])
    return ((tuple(names), shapes[key]) for key, names in owners.items())


def _built(module: nn.Module, weight: QuantizedMatrix) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(weight, dtype=module.weight.dtype)
    assert isinstance(module, nn.Linear)
    return QuantizedLinear(weight, module.bias)


def _refuse_training(model: nn.Module, _: object) -> None:
    is_training = model.training and torch.is_grad_enabled()
    if is_training and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedError(
            "quantized weights cannot be trained: add LoRA adapters to the model and train those, or load it without "
            "quantize= to train all weights; to generate with it, call model.eval() first"
        )
