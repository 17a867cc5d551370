"""Stages of a finished model, by surgery: each process of the `pp` dim keeps some of the layers.

The first stage has the embedding, the last one the norm and the head. What another stage has is replaced, so that every
weight keeps its full name, and the model's own forward runs a stage.
"""

import copy
from collections.abc import Collection
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn

from llamita.errors import UsageError
from llamita.model import surgery
from llamita.model.llama import LlamaForCausalLM

M = TypeVar("M", bound=nn.Module)


class Elsewhere(nn.Module):
    """In the place of a layer, norm or head that another stage has: hidden states pass it unchanged."""

    def forward(self, hidden_states: Tensor, *given: Any) -> Tensor:
        """The hidden states, as they are."""
        return hidden_states


class Received(nn.Module):
    """In the place of the embedding in a later stage: gives the hidden states of the stage before.

    weight: the embedding's, in the last stage of a model whose head shares it.
    """

    def __init__(self, weight: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self._waiting: list[Tensor] = []

    def put(self, hidden_states: Tensor) -> None:
        """Give the hidden states (B, T, D) of the next pass."""
        self._waiting.append(hidden_states)

    def forward(self, input_ids: Tensor) -> Tensor:
        """What was put, once; the token ids do not matter."""
        return self._waiting.pop()


def cut(model: LlamaForCausalLM, stages: Collection[int], count: int) -> None:
    """Keep some of a model's stages; the weights of the others are freed, or never read where they are still to come.

    Raises UsageError for too few layers.
    """
    number, is_last = len(model.model.layers), count - 1 in stages
    shares = layers_of(number, count)
    own = {layer for stage in stages for layer in shares[stage]}
    away = [f"model.layers.{layer}" for layer in range(number) if layer not in own]
    if 0 not in stages:
        weight = tied_weight(model) if is_last else None
        surgery.replace(model, "model.embed_tokens", lambda module: _received(module, weight))
    if not is_last:
        away += ["model.norm", "lm_head"]
    surgery.replace(model, away, lambda module: Elsewhere())


def view(model: LlamaForCausalLM, stage: int, count: int) -> LlamaForCausalLM:
    """One of the stages that a process keeps of a model, as a model of the same layers, norm, head and embedding."""
    found = _with_own_modules(model)
    found.model = _with_own_modules(model.model)
    found.model.layers = _with_own_modules(model.model.layers)
    cut(found, [stage], count)
    return found


def _with_own_modules(module: M) -> M:
    """A copy whose modules may be replaced; they are still those of the original."""
    found = copy.copy(module)
    vars(found)["_modules"] = dict(module._modules)
    return found


def _received(module: nn.Module, weight: nn.Parameter | None) -> nn.Module:
    """What stands in the place of an embedding, or what does so already: its weight may be sharded later."""
    return module if isinstance(module, Received) and weight is not None else Received(weight)


def tied_weight(model: LlamaForCausalLM) -> nn.Parameter | None:
    """The weight that head and embedding share, with adapters or without; None where each has its own, or blocks."""
    heads = {id(weight) for weight in model.lm_head.parameters()}
    return next((weight for weight in model.model.embed_tokens.parameters() if id(weight) in heads), None)


def layers_of(layers: int, stages: int) -> list[range]:
    """The numbers of the layers of each stage; the first ones have one more, as the last has the head.

    Raises UsageError for fewer layers than stages.
    """
    if layers < stages:
        raise UsageError(
            f"a model of {layers} layers has no {stages} stages: lower --pp, or --pp-stages of interleaved"
        )
    share, more = divmod(layers, stages)
    starts = [stage * share + min(stage, more) for stage in range(stages + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]
