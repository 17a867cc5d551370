"""A process's slices of whole weights, as DTensor cuts them, without a message."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard


def placed(weight: Tensor, like: Tensor, *, dtype: torch.dtype, device: torch.device, copies: bool = False) -> Tensor:
    """A whole weight as a model wants it: this process's part of it where `like` is sharded, in a dtype on a device.

    The rest is not read: a weight in a file is mapped, and only the pages of the part are touched. copies: the part has
    memory of its own, as what is trained needs: checkpoints copy whole storages, and a view keeps the whole weight.
    """
    if not isinstance(like, DTensor):
        return weight.to(device=device, dtype=dtype)
    own = own_part(weight, like.device_mesh, like.placements).to(device=device, dtype=dtype, copy=copies)
    return joined(own.contiguous(), like.device_mesh, like.placements, weight.shape)


def own_part(weight: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """The part of a whole weight that this process of a mesh keeps, as a view."""
    cuts = [one for one in zip(placements, mesh.shape, _coordinate(mesh), strict=True) if hasattr(one[0], "dim")]
    # FSDP2 over tensor parallelism cuts what that has left (a _StridedShard), though its dim of the mesh comes first.
    for placement, size, at in sorted(cuts, key=lambda one: hasattr(one[0], "split_factor")):
        dim = cast("Shard", placement).dim
        own = own_range(weight.shape[dim], at, size)
        weight = weight.narrow(dim, own.start, len(own))
    return weight


def own_range(length: int, at: int, size: int) -> range:
    """What the process `at` of `size` has of a dim."""
    share = share_of(length, size)
    start = min(at * share, length)
    return range(start, min(start + share, length))


def share_of(length: int, processes: int) -> int:
    """How much of a dim each process has, as DTensor cuts it; the last ones have less, or nothing."""
    return -(-length // processes)


def joined(own: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
    """The sharded tensor of this shape whose part here is `own`."""
    size = torch.Size(shape)
    strides = torch.empty(size, device="meta").stride()
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=size, stride=strides)


def _coordinate(mesh: DeviceMesh) -> list[int]:
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "this process is in the mesh"
    return list(coordinate)
