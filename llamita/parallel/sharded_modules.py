"""The forwards of modules whose weights are sharded over the `tp` dim of a mesh, and how their weights are replaced."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from llamita.model import plan
from llamita.model.stored import StoredMatrix, StoredWeight
from llamita.parallel.placements import FEATURES, Part
from llamita.parallel.shard import whole
from llamita.parallel.slices import joined, own_range, share_of


class Sharded(plan.StandIn):
    """The forward of a module whose parameters are sharded; removing the plan gathers them again."""

    plan = "tensor"

    def __init__(self, module: nn.Module, part: Part, mesh: DeviceMesh) -> None:
        super().__init__(module)
        self.part, self.mesh, self.processes = part, mesh, mesh.size()

    def __call__(self, x: Tensor) -> Tensor | DTensor:
        """The module's own forward, of an input and to an output in the layouts of its part."""
        part, mesh = self.part, self.mesh
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [part.comes], run_check=False)
        out = self.plain(x.redistribute(placements=[part.reads])).redistribute(placements=[part.gives])
        return out.to_local() if part.is_local else out

    def undo(self, model: nn.Module) -> None:
        """Gather every weight on every process."""
        replace_parameters(model, lambda module, name, weight: whole(weight))
        replace_matrices(model, self._whole_matrix)

    def _whole_matrix(self, own: StoredMatrix) -> StoredMatrix:
        parts = [own.stored_tensors()] * self.processes
        distributed.all_gather_object(parts, own.stored_tensors(), group=self.mesh.get_group())
        return own.joined(parts)


class ShardedBlocks(Sharded):
    """The forward of a layer or an embedding in blocks, of whose weight (N, K) this process has some of the rows."""

    def __init__(self, module: nn.Module, part: Part, mesh: DeviceMesh) -> None:
        super().__init__(module, part, mesh)
        self.rows = cast("StoredWeight[StoredMatrix]", module).matrix.shape[0]

    def plain(self, x: DTensor) -> DTensor:
        """The products (..., N) with x (..., K), or the embeddings (..., D) of ids (...)."""
        own = x.to_local(grad_placements=[Partial()])  # each process has a gradient of its own outputs: they are summed
        if not hasattr(self.module, "in_features"):
            return DTensor.from_local(self._embeddings(own), self.mesh, [Partial()], run_check=False)
        return joined(super().plain(own), self.mesh, [FEATURES], (*x.shape[:-1], self.rows))

    def _embeddings(self, ids: Tensor) -> Tensor:
        """What this process adds to the embeddings of ids: zeros where another one has them."""
        own = own_range(self.rows, self.mesh.get_local_rank(), self.processes)
        found = super().plain((ids - own.start).clamp(0, len(own) - 1))
        is_here = (ids >= own.start) & (ids < own.stop)
        return torch.where(is_here[..., None], found, 0)


class Columns(Sharded):
    """Must equal `Sharded` for a part of `WRITING`, without DTensor, which takes 0.7 s to plan each new shape.

    Products are of this process's rows of the weight, and what they give is gathered.
    """

    def __call__(self, x: Tensor) -> Tensor | DTensor:
        """The module's own forward; by DTensor where gradients are wanted, or another plan is underneath."""
        if torch.is_grad_enabled() or self.under is not None or isinstance(x, DTensor):
            return super().__call__(x)
        module = cast("nn.Linear | nn.Embedding", self.module)
        weight = cast("DTensor", module.weight)
        if isinstance(module, nn.Embedding):
            return self._rows(
                x, weight.to_local(), first=self.mesh.get_local_rank() * share_of(weight.shape[0], self.processes)
            )
        if self.part.comes == FEATURES:
            x = self._gathered(x, weight.shape[1])
        bias = None if module.bias is None else cast("DTensor", module.bias).to_local()
        out = functional.linear(x, weight.to_local(), bias)
        return out if self.part.gives == FEATURES else self._gathered(out, weight.shape[0])

    def _gathered(self, own: Tensor, size: int) -> Tensor:
        """All features (..., size) of which this process has its part; the last processes may have fewer."""
        share = share_of(size, self.processes)
        padded = functional.pad(own, (0, share - own.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.processes)]
        distributed.all_gather(parts, padded, group=self.mesh.get_group())
        return torch.cat(parts, dim=-1)[..., :size]

    def _rows(self, ids: Tensor, weight: Tensor, first: int) -> Tensor:
        """The embeddings (..., D) of ids: each is one process's, and the others add zeros."""
        own = ids - first
        is_here = (own >= 0) & (own < len(weight))
        found = weight.new_zeros((*ids.shape, weight.shape[1]))
        found[is_here] = weight[own[is_here]]
        distributed.all_reduce(found, group=self.mesh.get_group())
        return found


def replace_parameters(model: nn.Module, change: Callable[[nn.Module, str, Tensor], Tensor]) -> None:
    """Put other tensors in the places of all parameters; modules that share one share the new one too."""
    made = WeakIdKeyDictionary()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight not in made:
                made[weight] = nn.Parameter(change(module, name, weight.detach()), weight.requires_grad)
            setattr(module, name, made[weight])


def replace_matrices(model: nn.Module, change: Callable[[StoredMatrix], StoredMatrix]) -> None:
    """Put other matrices in the places of all that modules store; tied ones share the new one too."""
    made = WeakIdKeyDictionary()
    for module in model.modules():
        if isinstance(module, StoredWeight):
            matrix = cast("StoredMatrix", module.matrix)
            if matrix not in made:
                made[matrix] = change(matrix)
            module.matrix = made[matrix]
