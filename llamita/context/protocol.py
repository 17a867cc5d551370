"""The two questions that the model asks the world."""

from typing import Protocol

from torch import Tensor


class Rotation(Protocol):
    """Rotary angles of some positions, ready to rotate queries and keys."""

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies depend on this pass's length, so that stored keys must be rotated again."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x (B, T, heads, H) by the angles of its positions."""
        ...

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of the same frequencies at other positions (B, S)."""
        ...


class Context(Protocol):
    """What one forward pass needs besides weights: where its tokens stand, and how they attend.

    A context is a plain class, never a dataclass or a tuple: FSDP2 looks into those among a block's arguments and
    casts every float tensor it finds there, which would turn angles and masks into bf16.
    """

    positions: Tensor  # (B, T)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation, *, layer: int) -> Tensor:
        """Rotate, store and attend: q (B, T, N, H), k and v (B, T, K, H) -> (B, T, N, H)."""
        ...
