"""Who may see whom, described once; each backend asks for the form that its kernel reads."""

from typing import Any

import torch
from torch import Tensor


def document_starts(documents: Tensor) -> Tensor:
    """The first slot of each token's document: document numbers (B, T) -> slots (B, T)."""
    slots = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return (slots * is_first).cummax(dim=1).values


class Mask:
    """The visibility of S key slots for T query slots.

    Order in the slots decides, never position ids: with clamped left padding or repeated positions these would turn
    a row bidirectional. Query t stands in slot `offset + t` and sees the slots up to its own; `window`, `padding` and
    `documents` take away from that, and `given`, a mask from the user, replaces it all.

    queries, keys: T and S.
    offset: slots filled before this pass; a tensor () where the length must not be baked into a compiled graph.
    first: slot number of the first key; above 0 when a sliding cache has dropped the oldest.
    padding: (B, S) bool, True for real tokens. dropped: (B,) how many real tokens stand before the first key, given
    where there is padding and `first` is above 0. documents: the document number of each query (B, T) and key (B, S).
    given: (B | 1, N | 1, T, S), bool (True: visible) or additive.
    prepared: forms made of this mask so far, by this class or by a backend, which all layers share.
    """

    def __init__(
        self,
        queries: int,
        keys: int,
        *,
        device: torch.device,
        offset: int | Tensor = 0,
        first: int = 0,
        window: int | None = None,
        padding: Tensor | None = None,
        dropped: Tensor | None = None,
        documents: tuple[Tensor, Tensor] | None = None,
        given: Tensor | None = None,
    ) -> None:
        self.queries = queries
        self.keys = keys
        self.device = device
        self.offset = offset
        self.first = first
        self.window = window
        self.padding = padding
        self.dropped = dropped
        self.documents = documents
        self.given = given
        self.prepared: dict[str, Any] = {}

    # Kept in `prepared` rather than by cached_property, whose lock torch.compile cannot trace (Python 3.11).

    @property
    def is_plain_causal(self) -> bool:
        """Whether order alone decides, so that a kernel's own causal flag (T > 1) or no mask at all (T = 1) says it.

        Where T > 1, the first T keys are then those to attend to: a cache of fixed size has empty slots after them.
        True in the cases in which transformers drops the mask under sdpa, as bit-equality with it asks for.
        """
        if "plain" not in self.prepared:
            self.prepared["plain"] = self._is_plain_causal()
        return self.prepared["plain"]

    @property
    def visible(self) -> Tensor:
        """Bool (B | 1, N | 1, T, S), True where the query sees the key."""
        if "visible" not in self.prepared:
            self.prepared["visible"] = self._visible()
        return self.prepared["visible"]

    @property
    def visible_somewhere(self) -> Tensor:
        """`visible`, but a query that may see nothing sees everything: for kernels that make NaN of an empty row."""
        if "somewhere" not in self.prepared:
            self.prepared["somewhere"] = self.visible | ~self.visible.any(-1, keepdim=True)
        return self.prepared["somewhere"]

    def additive(self, dtype: torch.dtype) -> Tensor:
        """(B | 1, N | 1, T, S) of `dtype`: 0 where visible, the lowest finite number where not.

        Finite, so that a query that sees nothing gets the mean of all values rather than NaN.
        """
        name = f"additive {dtype}"
        if name not in self.prepared:
            self.prepared[name] = self._additive(dtype)
        return self.prepared[name]

    def _additive(self, dtype: torch.dtype) -> Tensor:
        lowest = torch.finfo(dtype).min
        if self.given is not None and self.given.dtype != torch.bool:
            return self.given.to(dtype).clamp(min=lowest)
        return torch.where(self.visible, torch.zeros((), device=self.device, dtype=dtype), lowest)

    def _is_plain_causal(self) -> bool:
        if self.given is not None or self.documents is not None:
            return False
        if self.window is not None and self.keys >= self.window:
            return False
        if isinstance(self.offset, Tensor):
            # Read on CPUs alone: a CUDA graph that is recorded holds for later tokens, too.
            is_read = self.queries > 1 and self.device.type == "cpu" and not torch.compiler.is_compiling()
            return is_read and self._begins_slots()
        if self.queries not in (1, self.keys):
            return False
        if self.padding is None:
            return True
        # Reading the values would break a graph being compiled.
        return not torch.compiler.is_compiling() and bool(self.padding.all())

    def _begins_slots(self) -> bool:
        """Whether the first tokens of a cache of fixed size are read, and no padding."""
        if bool(self.offset):
            return False
        new = self.queries
        return self.padding is None or bool(self.padding[:, :new].all() and not self.padding[:, new:].any())

    def _visible(self) -> Tensor:
        if self.given is not None:
            return self.given if self.given.dtype == torch.bool else self.given > torch.finfo(self.given.dtype).min
        query = (torch.arange(self.queries, device=self.device) + self.offset)[:, None]  # (T, 1)
        key = (torch.arange(self.keys, device=self.device) + self.first)[None, :]  # (1, S)
        visible = key <= query
        if self.window is not None:
            visible = visible & (key > query - self.window)
        visible = visible[None, None]  # (1, 1, T, S)
        if self.padding is not None:
            visible = visible & self.padding[:, None, None, :]
        if self.documents is not None:
            of_query, of_key = self.documents
            visible = visible & (of_query[:, None, :, None] == of_key[:, None, None, :])
        return visible
