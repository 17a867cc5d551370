"""Drawing tokens: probabilities without a finite sum are refused before a token is drawn from them."""

import torch
from torch import Tensor

from llamita.errors import NotFiniteError, UsageError

NEVER = -1.0e9  # transformers' score of what must not be chosen: finite, so that sums and comparisons stay defined


def not_finite() -> NotFiniteError:
    """The error of a model whose logits are not finite."""
    return NotFiniteError(
        "the model's logits are not finite: its weights are damaged, or too large for their dtype: load it again, or "
        "in float32"
    )


def multinomial(probabilities: Tensor, count: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
    """torch.multinomial, (B, V) -> (B, count); raises UsageError where there is nothing to draw from."""
    try:
        return torch.multinomial(probabilities, count, generator=generator)
    except RuntimeError:
        check_sums(probabilities.sum(-1))
        raise


def check_sums(sums: Tensor) -> None:
    """Raise UsageError where the probabilities of a row have no finite sum (B,) above 0."""
    if not bool(((sums > 0) & sums.isfinite()).all()):
        refuse()


def refuse() -> None:
    """Raise UsageError for a row without a token to draw."""
    raise UsageError(
        "there is no token to draw: the settings or a logits_processor forbid all of them, or gave NaN or infinity; "
        "allow at least one"
    )
