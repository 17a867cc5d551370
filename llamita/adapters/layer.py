"""A layer with adapters, which surgery puts in the place of a linear layer or an embedding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.dora import DoraPair
from llamita.adapters.embedding import EmbeddingPair
from llamita.adapters.pair import LoraPair, sides
from llamita.model.factors import Factors, factors_of
from llamita.model.plan import has_hooks
from llamita.model.stored import WithSettings


class LoraLayer(WithSettings):
    """A frozen linear layer, plain or quantized, or an embedding, with its adapters; the active ones are added."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        if not isinstance(base_layer, nn.Embedding):  # plans know products by these two
            self.in_features, self.out_features = sides(base_layer)
        self.pairs = nn.ModuleDict()
        self.configs: dict[str, LoraConfig] = {}
        self.active: tuple[str, ...] = ()
        self.unmerged: Tensor | None = None  # the base weight, while another one is in its place

    def add(self, name: str, config: LoraConfig, pair: LoraPair) -> None:
        """Give the layer the matrices of an adapter."""
        self.pairs[name] = pair.train(self.training)
        self.configs[name] = config

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., K), or look up ids (...), and add what the active adapters add: (..., N)."""
        out = self.base_layer(x)
        if self.unmerged is not None:
            return out
        dtype = out.dtype
        for name in self.active:
            if name in self.pairs:
                out = self.pairs[name](x, out, self.base_layer)
        return out.to(dtype)

    def factors(self) -> Factors | None:
        """What it multiplies with, while it is a product and at most one pair of plain matrices."""
        own = factors_of(self.base_layer)
        pairs = [self.pairs[name] for name in self.active if name in self.pairs]
        if own is None or self.unmerged is not None or not pairs:
            return own
        (pair, *others) = cast("list[LoraPair]", pairs)
        is_random = self.training and pair.dropout > 0
        if others or type(pair) is not LoraPair or is_random or has_hooks(pair):
            return None
        return replace(own, pair=(pair.A, pair.B), scaling=pair.scaling)

    def is_sum(self) -> bool:
        """Whether it adds products alone: nothing is merged into its weight, and nothing drawn at random."""
        is_random = self.training and any(cast("LoraPair", pair).dropout > 0 for pair in self.pairs.values())
        return self.unmerged is None and not is_random

    def settings(self) -> str:
        """The adapters that compute, with their scales."""
        scales = [(name, cast("LoraPair", self.pairs[name]).scaling) for name in self.active if name in self.pairs]
        return f"{scales}, {'merged' if self.unmerged is not None else 'added'}"

    @torch.no_grad()
    def merge(self) -> None:
        """Add the active adapters to the base weight, one after another, each rounded to the weight's dtype."""
        base = cast("nn.Linear | nn.Embedding", self.base_layer)
        weight = base.weight.data
        self.unmerged = weight
        for name in self.active:
            if name in self.pairs:
                weight = cast("LoraPair", self.pairs[name]).merged(weight, self.unmerged)
        base.weight.data = weight

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit."""
        assert self.unmerged is not None
        cast("nn.Linear | nn.Embedding", self.base_layer).weight.data = self.unmerged
        self.unmerged = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the original weight of a merged layer with the rest."""
        if self.unmerged is not None:
            self.unmerged = fn(self.unmerged)
        return super()._apply(fn, recurse)


def base_of(layer: nn.Module) -> nn.Module:
    """The layer itself, or the one that it adapts."""
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def pair_kind(base: nn.Module, config: LoraConfig) -> type[LoraPair]:
    """The class of the matrices that a layer gets."""
    if isinstance(base, nn.Embedding):
        return EmbeddingPair
    return DoraPair if config.use_dora else LoraPair
