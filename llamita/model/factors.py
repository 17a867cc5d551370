"""What a linear layer multiplies with, adapters included, for plans that write its products out."""

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from llamita.model.plan import has_hooks
from llamita.model.stored import StoredMatrix, StoredWeight

OWN = (__name__.partition(".")[0], "torch")  # whose classes of layers these are


@dataclass(frozen=True, eq=False)
class Factors:
    """The product x W^T + scaling (x A^T) B^T.

    weight: W (N, K), or None where it is a stored matrix. pair: A (r, K) and B (N, r), or None without an adapter.
    """

    weight: Tensor | None
    matrix: StoredMatrix | None = None
    pair: tuple[Tensor, Tensor] | None = None
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        own = self.matrix if self.weight is None else self.weight
        assert own is not None
        rows, columns = own.shape
        return rows, columns


@runtime_checkable
class HasFactors(Protocol):
    """A layer with adapters, which says what it multiplies with. base_layer: the layer that they adapt."""

    base_layer: nn.Module

    def is_sum(self) -> bool:
        """Whether it adds products alone: nothing is merged into its weight, and nothing drawn at random."""
        ...

    def factors(self) -> Factors | None:
        """Its factors; None where it does something else too."""
        ...


def factors_of(layer: nn.Module) -> Factors | None:
    """The factors of a layer that is a product and nothing else: no bias, hook, plan or shard; else None.

    Of a class from elsewhere nobody knows what its forward does, whatever it inherits from.
    """
    if has_hooks(layer) or type(layer).__module__.partition(".")[0] not in OWN:
        return None
    if isinstance(layer, HasFactors):
        return layer.factors()
    if getattr(layer, "bias", None) is not None:
        return None
    if isinstance(layer, StoredWeight):
        return Factors(None, cast("StoredWeight[StoredMatrix]", layer).matrix)
    is_whole = isinstance(layer, nn.Linear) and not hasattr(layer.weight, "__tensor_flatten__")
    return Factors(cast("nn.Linear", layer).weight) if is_whole else None
