"""Tree attention: drafts that branch, checked in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.attention import backend as attention_backend
from llamita.attention.mask import Mask
from llamita.cache.cache import Cache
from llamita.context.cached import Cached


class Tree(Cached):
    """Tree attention: a draft sees the text, its ancestors and itself; its position is its depth after the text.

    The pass reads those of the W slots of the text that the cache does not hold, and the M drafts after them.

    real: (B, W) bool, which slots hold a token of the row. parents: for each draft the number of its parent, a smaller
    one, or -1 for the text's last token. window: how many positions back a query sees.
    """

    def __init__(
        self,
        real: Tensor,
        parents: Sequence[int],
        cache: Cache,
        *,
        backend: str = "sdpa",
        scale: float,
        window: int | None = None,
    ) -> None:
        lines = lineage(parents)
        depths = torch.tensor([len(line) for line in lines], device=real.device)
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)  # (B, W)
        positions = torch.cat((positions, positions[:, -1:] + depths), dim=1)  # (B, W + M)
        seen = visible(real, lines)[:, cache.length :]  # (B, T, W + M)
        new = positions[:, cache.length :]
        if window is not None:
            seen = seen & (positions[:, None, :] > new[:, :, None] - window)
        mask = Mask(
            new.shape[1], positions.shape[1], device=real.device, offset=cache.length, given=seen[:, None]
        )  # fmt: skip
        super().__init__(new, mask, cache, backend=attention_backend(backend), scale=scale)


def lineage(parents: Sequence[int]) -> list[list[int]]:
    """For each draft the numbers of its ancestors, from the first, and its own."""
    lines: list[list[int]] = []
    for number, parent in enumerate(parents):
        assert parent < number, "a draft follows one that comes before it"
        lines.append([*(lines[parent] if parent >= 0 else []), number])
    return lines


def visible(real: Tensor, lines: Sequence[Sequence[int]]) -> Tensor:
    """Who sees whom in a text (B, W) and its M drafts: (B, W + M, W + M) bool."""
    (batch, width), count = real.shape, len(lines)
    seen = torch.ones(width + count, width + count, dtype=torch.bool, device=real.device).tril()
    seen[width:, width:] = torch.tensor([[i in line for i in range(count)] for line in lines], device=real.device)
    everywhere = torch.ones(batch, count, dtype=torch.bool, device=real.device)
    return seen & torch.cat((real, everywhere), dim=1)[:, None, :]
