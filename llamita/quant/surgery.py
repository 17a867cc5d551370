"""Quantizing a finished model: its projections, its embedding and its head become layers of few bits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llamita.errors import UnsupportedError, UsageError
from llamita.model.pretrained import PreTrainedModel
from llamita.quant import recipes
from llamita.quant.linear import QuantizedEmbedding, QuantizedLinear
from llamita.quant.matrix import Matrix, matrix
from llamita.quant.recipes import Recipe


@dataclass(frozen=True)
class Choice:
    """A weight of a model and the format it is to take, None to stay; `names` are the modules that share it."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    form: str | None


Watch = Callable[[Choice, Tensor, Matrix], None]  # told of each weight (N, K), and of what became of it


def choices(model: PreTrainedModel, recipe: Recipe) -> list[Choice]:
    """Every embedding and linear layer of the model with the format that the recipe gives it, in order.

    The heads of classifiers stay as they are: they are small, and trained.
    Raises UsageError for an unknown recipe, UnsupportedError for a model that is quantized.
    """
    if is_quantized(model):
        raise UnsupportedError("this model is quantized already: quantize the one it was made of")
    config = model.config
    return [
        Choice(names, shape, recipes.choose(recipe, names[0], shape, config, is_head="lm_head" in names))
        for names, shape in _weights(model)
    ]


def quantize(model: PreTrainedModel, recipe: Recipe, *, watch: Watch | None = None) -> list[Choice]:
    """Quantize a model in place, by the name of a recipe or by one's own mapping of globs to formats.

    What stays is frozen: the model is there to be read, or to train adapters on. Returns what became of each weight.
    watch: is told of each weight while it is still there. Memory: one weight at a time is there twice.
    Raises UsageError (an unknown recipe, weights that are not finite), UnsupportedError (quantized already).
    """
    chosen = choices(model, recipe)
    for choice in chosen:
        if choice.form is not None:
            _replace(model, choice, choice.form, watch)
    freeze(model)
    return chosen


def put(model: nn.Module, names: tuple[str, ...], weight: Matrix) -> None:
    """Put a quantized weight in the place of the linear or embedding modules `names`, which share it from then on.

    names: whole ones. An embedding goes on to give its rows in the dtype that its weights had.
    """
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, _built(model.get_submodule(name), weight))


def freeze(model: PreTrainedModel) -> None:
    """Freeze what is left of a quantized model, and have it say so when it is trained all the same."""
    model.requires_grad_(False)
    model.register_forward_pre_hook(_refuse_training)


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer of the model is quantized."""
    return any(True for _ in quantized_layers(model))


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear | QuantizedEmbedding]]:
    """The quantized layers by name, twins included."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            yield name, module


def _replace(model: PreTrainedModel, choice: Choice, form: str, watch: Watch | None) -> None:
    weight = cast("Tensor", model.get_submodule(choice.names[0]).weight).detach()
    extremes = torch.stack(torch.aminmax(weight))  # NaN is both; isfinite of every number takes 30 times as long
    if not extremes.isfinite().all():
        raise UsageError(
            f"{choice.names[0]} has weights that are not finite: mend the checkpoint, it cannot be quantized"
        )
    packed = matrix(form, weight)
    if watch is not None:
        watch(choice, weight, packed)
    put(model, choice.names, packed)


def _weights(model: PreTrainedModel) -> Iterator[tuple[tuple[str, ...], tuple[int, int]]]:
    """The names of the modules of each weight, and its shape; a tied embedding and head are one weight."""
    owners: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, int]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        is_part = "layers." in name or name.endswith(("embed_tokens", "lm_head"))
        if is_part and type(module) in (nn.Linear, nn.Embedding):
            weight = cast("Tensor", module.weight)
            owners.setdefault(id(weight), []).append(name)
            shapes[id(weight)] = (weight.shape[0], weight.shape[1])
    return ((tuple(names), shapes[key]) for key, names in owners.items())


def _built(module: nn.Module, weight: Matrix) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(weight, dtype=module.weight.dtype)
    assert isinstance(module, nn.Linear)
    return QuantizedLinear(weight, module.bias)


def _refuse_training(model: nn.Module, _: object) -> None:
    is_training = model.training and torch.is_grad_enabled()
    if is_training and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedError(
            "quantized weights do not learn: put LoRA adapters on the model and train those, or load it without "
            "quantize= to train it whole; to write with it, call model.eval() first"
        )
