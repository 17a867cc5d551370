"""Making a model's vocabulary larger or smaller."""

import torch
from torch import Tensor, nn

from llamita.errors import UsageError


def new_size(current: int, asked: int | None, pad_to_multiple_of: int | None) -> int:
    """The number of tokens to resize to: what was asked, rounded up to a multiple.

    Raises UsageError for sizes and multiples below 1.
    """
    size = current if asked is None else asked
    if size < 1:
        raise UsageError(f"new_num_tokens is {size}: a vocabulary needs at least 1 token")
    if pad_to_multiple_of is None:
        return size
    if isinstance(pad_to_multiple_of, bool) or not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1:
        raise UsageError(
            f"Asking to pad the embedding matrix to a multiple of `{pad_to_multiple_of}`, which is not and integer: "
            "give a whole number of at least 1"
        )
    return -(-size // pad_to_multiple_of) * pad_to_multiple_of


@torch.no_grad()
def resized(rows: Tensor, size: int, *, std: float, from_mean: bool) -> Tensor:
    """`rows` (V, D) cut or extended to `size`: old rows unchanged.

    from_mean: draw new rows around the mean of the old ones, with a billionth of their covariance, so that new
    tokens start out no likelier than an average one (Hewitt 2021); else normal(0, std).
    """
    kept = rows[:size]
    added = size - kept.shape[0]
    if added == 0:
        return kept.clone()
    fresh = torch.empty(added, rows.shape[1], dtype=torch.float32, device=rows.device)
    if from_mean:
        old = rows.float()
        mean = old.mean(0)
        # One draw z of N(0, I) over the old rows gives (old - mean)^T z / sqrt(V) ~ N(0, covariance), without its root.
        draws = torch.randn(added, old.shape[0], dtype=torch.float32, device=rows.device) / old.shape[0] ** 0.5
        fresh = mean + 1e-9**0.5 * draws @ (old - mean)
    else:
        fresh.normal_(0.0, std)
    return torch.cat((kept, fresh.to(rows.dtype)))


def resize_module(module: nn.Module, size: int, *, std: float, from_mean: bool) -> None:
    """Resize the rows of an Embedding or a Linear head in place of its old parameters."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        rows = parameter if parameter.ndim == 2 else parameter[:, None]
        data = resized(rows.data, size, std=std, from_mean=from_mean)
        setattr(module, name, nn.Parameter(data.view(size, *parameter.shape[1:]), parameter.requires_grad))
    if isinstance(module, nn.Embedding):
        module.num_embeddings = size
    elif isinstance(module, nn.Linear):
        module.out_features = size
