"""What forward returns: attributes, keys, and a tuple without the empty places."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from llamita.cache.cache import Cache


class ModelOutput:
    """A record read as `out.logits`, `out["logits"]` or `out[0]`; places that are None do not count in the tuple."""

    def __init_subclass__(cls) -> None:
        # FSDP2, DDP and compile look for tensors in outputs through pytree.
        pytree.register_pytree_node(
            cls,
            lambda out: ([getattr(out, f.name) for f in fields(out)], None),
            lambda values, _: cls(*values),
        )

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        """The names of the values that are not None."""
        return [item.name for item in fields(self) if getattr(self, item.name) is not None]  # type: ignore[arg-type]

    def values(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return self.to_tuple()

    def items(self) -> list[tuple[str, Any]]:
        """(name, value) of the values that are not None."""
        return list(zip(self.keys(), self.to_tuple(), strict=True))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of this name, or the default."""
        return getattr(self, key) if key in self.keys() else default

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(repr=False)
class BaseModelOutputWithPast(ModelOutput):
    """last_hidden_state (B, T, D); hidden_states L + 1 of these; attentions (B, N, T, S) of each recorded layer."""

    last_hidden_state: Tensor
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class CausalLMOutputWithPast(ModelOutput):
    """loss (); logits (B, T, V), or of the kept positions only."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """loss (); logits (B, labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class TokenClassifierOutput(ModelOutput):
    """loss (); logits (B, T, labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """loss (); start_logits and end_logits (B, T)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class EmbeddingOutput(ModelOutput):
    """embeddings (B, D), of unit length where asked; last_hidden_state (B, T, D)."""

    embeddings: Tensor
    last_hidden_state: Tensor
