"""A process's slices of weights."""

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.slices import own_part, placed
from llamita.parallel.tensor import shard_for_writing


class FakeMesh:
    """As much of a mesh as a weight's parts depend on."""

    def __init__(self, shape: tuple[int, ...], at: tuple[int, ...]) -> None:
        self.shape, self.at = shape, at

    def get_coordinate(self) -> list[int]:
        return list(self.at)


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Shard(-1)])
@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (2, 1), (6, 9)])
def test_parts_are_those_of_torch_chunk(rows: int, columns: int, placement: Shard) -> None:
    """The last processes have less, or nothing."""
    weight = torch.randn(rows, columns)
    parts = weight.chunk(4, dim=placement.dim)
    for rank in range(4):
        mesh: Any = FakeMesh((4,), (rank,))
        own = own_part(weight, mesh, [placement])
        assert torch.equal(own, parts[rank]) if rank < len(parts) else own.numel() == 0
        assert own.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_a_mesh_of_two_dims_cuts_twice() -> None:
    weight = torch.arange(24.0).view(6, 4)
    mesh: Any = FakeMesh((3, 2), (1, 1))
    assert torch.equal(own_part(weight, mesh, [Shard(0), Shard(1)]), weight[2:4, 2:])
    assert torch.equal(own_part(weight, mesh, [Shard(0), Shard(0)]), weight[3:4])
    assert own_part(weight, mesh, [Replicate(), Replicate()]) is weight


def test_a_weight_is_placed_as_the_parameter_is(process_group: None, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config)
    shard_for_writing(model, init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)))
    weight, options = torch.randn(97, 48), {"dtype": torch.float64, "device": torch.device("cpu")}
    found = placed(weight, model.lm_head.weight, **options)
    assert isinstance(found, DTensor) and found.placements == (Shard(0),) and found.dtype == torch.float64
    assert torch.equal(found.full_tensor(), weight.double())
    assert not isinstance(placed(weight, weight, **options), DTensor)
