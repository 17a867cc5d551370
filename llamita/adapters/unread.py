"""Adapters of a model whose weights are still to come, as where several processes each read their own part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from llamita.adapters.lora import lora_layers, put, unload_adapters
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
def first_values(model: nn.Module, *, seed: int, device: torch.device) -> None:
    """Give adapters on the meta device the numbers that `add_lora` gives after this seed, once the base has its own.

    Of a sharded model each process keeps its own part; the matrices of one layer at a time are whole.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for target, layer in lora_layers(model).items():
            for name, own in cast("Iterator[tuple[str, LoraPair]]", layer.pairs.items()):
                like = torch.empty(0, dtype=own.A.dtype, device=device)
                whole = type(own)(layer.configs[name], target, layer.base_layer, like)
                for leaf, empty in list(own.named_parameters()):
                    found = whole.get_parameter(leaf).detach()
                    if not hasattr(found, "placements"):  # the lengths of rows are as their matrix is already
                        fit = cast("Any", model).fit
                        found = fit(found, empty, dtype=found.dtype, device=device, copies=True)
                    loading.put(own, leaf, found)
