"""What generation asks of a model: whatever answers to it can be written with, sharded or wrapped models too."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig


class LanguageModel(Protocol):
    """A model that gives logits of what comes next, by the names of `LlamaForCausalLM`."""

    training: bool
    config: LlamaConfig

    @property
    def cache_config(self) -> LlamaConfig:
        """The config that its caches are made by, with the heads of this process."""
        ...

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The flags that its checkpoint gives to generation."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        ...

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Logits (B, T, V) and a cache: see `LlamaForCausalLM.forward`."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """What turns token ids (B, T) into embeddings (B, T, D)."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Its weights."""
        ...

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Its other tensors."""
        ...

    def first_layers(self, count: int) -> Self:
        """A model of its first layers, its norm and its head, for early exit."""
        ...

    def last_hidden_state(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What its head reads, (B, T, D)."""
        ...

    def head(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        ...
