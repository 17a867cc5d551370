"""Muon moves by the bits of torch's own."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

from llamita.train.muon import Muon, newton_schulz, orthogonal


def test_it_moves_by_the_bits_of_torch_s() -> None:
    """Wide, tall and square matrices, momentum over steps, and weight decay."""
    shapes, ours, theirs = [(5, 9), (9, 5), (6, 6)], list[nn.Parameter](), list[nn.Parameter]()
    for shape in shapes:
        weight = torch.randn(shape)
        ours.append(nn.Parameter(weight.clone()))
        theirs.append(nn.Parameter(weight.clone()))
    mine = Muon(ours, lr=0.1, weight_decay=0.3)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, adjust_lr_fn="original")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert mine.state_dict()["state"].keys() == reference.state_dict()["state"].keys()
    assert mine.state_dict()["state"][0].keys() == {"momentum_buffer"}


def test_singular_values_come_near_to_one() -> None:
    values = torch.linalg.svdvals(newton_schulz(torch.randn(7, 12)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_shards_of_any_placement_move_by_the_same_bits(process_group: None) -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp_shard", "tp"))
    matrices = list(torch.randn(3, 7, 5).unbind())
    placements: list[tuple[DeviceMesh, list[Placement]]] = [
        (mesh["tp"], [Shard(0)]), (mesh["tp"], [Shard(1)]), (mesh, [Shard(0), Shard(1)]),
    ]  # fmt: skip
    sharded = [distribute_tensor(one, *where) for one, where in zip(matrices, placements, strict=True)]
    for found, one, where in zip(orthogonal([*sharded]), matrices, placements, strict=True):
        assert isinstance(found, DTensor) and list(found.placements) == where[1]
        assert torch.equal(found.full_tensor(), newton_schulz(one))
