"""Plain tensors pass through what gathers and shards; several ranks: see tests/distributed."""

import torch
from torch import nn

from llamita.parallel.shard import Pass, local, reshard, sharded_as, whole


def test_plain_tensors_are_whole_already() -> None:
    tensor = torch.randn(3)
    assert whole(tensor) is local(tensor) is sharded_as(torch.zeros(3), tensor) is tensor


def test_a_pass_gives_the_model_to_what_it_calls() -> None:
    model = nn.Linear(2, 3)
    root = Pass(model)
    x = torch.randn(4, 2)
    assert torch.equal(root(lambda own, batch: own(batch).sum(), x), model(x).sum())
    assert dict(root.named_parameters()).keys() == {"model.weight", "model.bias"}
    reshard(root)
    assert root.model is model
