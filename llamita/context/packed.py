"""Several documents in one row, none of which sees another."""

import torch
from torch import Tensor

from llamita.attention import backend as attention_backend
from llamita.attention.mask import Mask, document_starts
from llamita.context.causal import Causal


class Packed(Causal):
    """A pass over rows that hold several documents one after another.

    documents: (B, T) integers, equal for the tokens of one document, which stand together. Positions start at 0 in
    each document.
    """

    def __init__(self, documents: Tensor, *, scale: float, backend: str = "sdpa", dropout: float = 0.0) -> None:
        length = documents.shape[1]
        mask = Mask(length, length, device=documents.device, documents=(documents, documents))
        positions = positions_in(documents)
        super().__init__(positions, mask, backend=attention_backend(backend), scale=scale, dropout=dropout)


def positions_in(documents: Tensor) -> Tensor:
    """Where each token stands in its own document: (B, T) document numbers -> (B, T) positions from 0."""
    return torch.arange(documents.shape[1], device=documents.device) - document_starts(documents)


def documents_of(positions: Tensor) -> Tensor | None:
    """The document numbers (B, T) that positions (B, T) imply: a new one wherever they do not go on by 1.

    None when every row is one document (not looked at inside a compiled graph).
    """
    starts = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
    if not torch.compiler.is_compiling() and not bool(starts.any()):
        return None
    return starts.cumsum(-1)
