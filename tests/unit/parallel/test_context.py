"""Context parallelism in one process: a mesh of one, and what is refused."""

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llamita.cache.dynamic import DynamicCache
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.context import check_length, pass_of, split_rows
from llamita.parallel.shard import Pass

IDS = torch.tensor([[5, 9, 31, 4, 90, 2], [7, 8, 1, 60, 61, 62]])
PACKED = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]])


@pytest.fixture
def mesh(process_group: None) -> DeviceMesh:
    return init_device_mesh("cpu", (1,), mesh_dim_names=("cp",))


@pytest.mark.parametrize("positions", [None, PACKED])
def test_a_mesh_of_one_changes_nothing(
    positions: torch.Tensor | None, mesh: DeviceMesh, tiny_config: LlamaConfig
) -> None:
    model = LlamaForCausalLM(tiny_config)
    expected = model(IDS, position_ids=positions, use_cache=False).logits
    split_rows(model, mesh)
    assert plan.active(model) == ("context",)
    assert torch.equal(model(IDS, position_ids=positions).logits, expected)
    plan.remove(model, "context")
    assert plan.active(model) == ()


def test_masks_caches_and_lengths_are_refused(mesh: DeviceMesh, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config)
    split_rows(model, mesh)
    for named in ({"attention_mask": torch.ones(2, 6)}, {"past_key_values": DynamicCache()}):
        with pytest.raises(UnsupportedError, match=r"^context parallelism is for training on packed rows, without"):
            model(IDS, **named)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(UnsupportedError, match=r"^rotary type dynamic depends on the length of a row"):
        split_rows(LlamaForCausalLM(tiny_config.replace(rope_parameters=rope)), mesh)
    check_length(6, 3)
    with pytest.raises(UsageError, match=r"^length is 7, which 3 processes of --cp cannot share evenly: take"):
        check_length(7, 3)
    assert type(pass_of(LlamaForCausalLM(tiny_config), None)) is Pass
