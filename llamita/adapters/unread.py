"""Adapters of a model whose weights are still to come, as where several processes each read their own part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.lora import add_lora, lora_layers, put, unload_adapters
from llamita.adapters.pair import LoraPair
from llamita.model import loading


@contextmanager
def taken_off(model: nn.Module) -> Iterator[None]:
    """Let the adapted layers be plain ones in this block, so that their weights have the names of a checkpoint."""
    layers = lora_layers(model)
    unload_adapters(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            put(model, name, layer)


@torch.no_grad()
def first_values(model: nn.Module, config: LoraConfig, *, seed: int, device: torch.device) -> None:
    """Give an adapter on the meta device the numbers that `add_lora` gives after this seed, once the base has its own.

    Each process of a sharded model keeps its own part, and each stage its own layers; the matrices of one layer at a
    time are whole, and those of other stages are drawn too. Every process must ask.
    """
    own, fit = lora_layers(model), cast("Any", model).fit
    whole = cast("Any", model).without_weights(cast("Any", model).config)
    add_lora(whole, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for target, described in lora_layers(whole).items():
            layer = own.get(target, described)
            for pair in cast("Iterator[LoraPair]", layer.pairs.values()):
                like = torch.empty(0, dtype=pair.A.dtype, device=device)
                drawn = type(pair)(config, target, layer.base_layer, like)
                for leaf, empty in list(pair.named_parameters()) if target in own else ():
                    found = drawn.get_parameter(leaf).detach()
                    loading.put(pair, leaf, fit(found, empty, dtype=found.dtype, device=device, copies=True))
