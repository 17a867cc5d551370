"""FSDP2: the weights, gradients and optimizer states of a finished model in shards, one on each data-parallel rank."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Pass(nn.Module):
    """A model's pass as a module: what it is called with is given the model.

    FSDP2 gathers and frees weights around the forward of a module, but a loss may call several parts of a model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[..., Tensor], *given: Any) -> Tensor:
        """What `compute(model, *given)` returns."""
        return compute(self.model, *given)


def shard(root: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, *, reduce_scatter: Any = None) -> None:
    """Shard each layer over a mesh of one dim, and what the root has besides them. Gradients are summed over the ranks.

    The weights become DTensors, so optimizers are built afterwards. A loss must be divided by the learned tokens of all
    ranks. reduce_scatter: replaces the collective that sums gradients (a `ReduceScatter` of FSDP2).
    """
    for layer in layers:
        if any(True for _ in layer.parameters()):  # another stage's layer has none
            fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)
    for module in _sharded_modules(root):
        # On every module: FSDP2 would divide by the number of ranks, and it asks each module by itself.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
        if reduce_scatter is not None:
            module.set_custom_reduce_scatter(reduce_scatter)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as a plain one, gathered on every rank; a plain one as it is. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(root: nn.Module) -> None:
    """Leave each rank its shards alone: after a pass without a backward pass, the root's weights are still whole."""
    for module in _sharded_modules(root):
        module.reshard()


def _sharded_modules(root: nn.Module) -> list[FSDPModule]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which shares its memory; a plain one as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def align_gradient(weight: Tensor) -> Tensor:
    """Let a weight's gradient be cut as the weight is: under tensor parallelism it may be cut otherwise, or be a sum.

    Returns this rank's part of it.
    """
    assert weight.grad is not None
    if isinstance(weight, DTensor) and isinstance(weight.grad, DTensor) and weight.grad.placements != weight.placements:
        weight.grad = weight.grad.redistribute(placements=weight.placements)
    return local(weight.grad)


def sharded_as(model: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that every rank has whole, in shards as another one of its shape is; nothing is sent. Shards stay."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
