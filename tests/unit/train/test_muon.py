"""Muon moves by the bits of torch's own."""

import torch
from torch import nn

from llamita.train.muon import Muon, newton_schulz


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
