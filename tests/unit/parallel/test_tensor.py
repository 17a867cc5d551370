"""Tensor parallelism in one process: parts of weights, a mesh of one, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from llamita.adapters.config import LoraConfig
from llamita.adapters.lora import add_lora, merge_adapters, unmerge_adapters
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM, LlamaModel
from llamita.model.stored import StoredWeight
from llamita.parallel.tensor import check_sizes, shard_for_training, shard_for_writing, sharded_loss
from llamita.quant.surgery import quantize


@pytest.fixture
def mesh(process_group: None) -> DeviceMesh:
    return init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp_shard", "tp"))


def logits_and_gradients(model: LlamaForCausalLM) -> list[Tensor]:
    ids = torch.tensor([[5, 9, 31], [4, 90, 2]])
    output = model(ids, labels=ids, use_cache=False)
    output.loss.backward()
    found = [output.logits, output.loss, *(weight.grad for weight in model.parameters())]
    return [one.full_tensor() if isinstance(one, DTensor) else one for one in found]


@pytest.mark.parametrize("shard", [shard_for_training, shard_for_writing])
def test_a_mesh_of_one_changes_nothing(shard: Any, mesh: DeviceMesh, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config)
    expected = logits_and_gradients(model)
    model.zero_grad()
    shard(model, mesh)
    assert plan.active(model) == ("tensor",)
    if shard is shard_for_training:
        with sharded_loss(model):
            found = logits_and_gradients(model)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    else:
        found = [model(torch.tensor([[5, 9, 31], [4, 90, 2]])).logits]
        assert torch.equal(found[0], expected[0])
    plan.remove(model, "tensor")
    assert not any(isinstance(weight, DTensor) for weight in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(expected, logits_and_gradients(model), strict=True))


@pytest.mark.parametrize(
    ("tp", "changes", "name"),
    [
        (4, {}, "num_attention_heads is 6"),
        (3, {}, "num_key_value_heads is 2"),
        (2, {"intermediate_size": 89}, "intermediate_size is 89"),
    ],
)
def test_sizes_that_tp_does_not_divide_are_refused(
    tp: int, changes: dict[str, Any], name: str, tiny_config: LlamaConfig
) -> None:
    check_sizes(tiny_config, 2)
    with pytest.raises(
        UsageError, match=rf"^tp is {tp}, and the model's {name}, which {tp} does not divide: "
    ) as error:
        check_sizes(tiny_config.replace(**changes), tp)
    assert "\n" not in str(error.value)


def test_other_models_and_layers_are_refused(mesh: DeviceMesh, tiny_config: LlamaConfig) -> None:
    other: Any = LlamaModel(tiny_config)
    with pytest.raises(UnsupportedError, match=r"^a LlamaModel has no model.embed_tokens, and tensor parallelism "):
        shard_for_writing(other, mesh)
    model = LlamaForCausalLM(tiny_config)
    add_lora(model, LoraConfig(r=2, target_modules="q_proj"))
    with pytest.raises(UnsupportedError, match=r"^model.layers.0.self_attn.q_proj is a LoraLayer, which tensor"):
        shard_for_writing(model, mesh)
    random = LlamaForCausalLM(tiny_config).train()
    add_lora(random, LoraConfig(r=2, target_modules="v_proj", lora_dropout=0.1))
    with pytest.raises(UnsupportedError, match=r"^model.layers.0.self_attn.v_proj is a LoraLayer, which tensor"):
        shard_for_training(random, mesh)
    merge_adapters(random.eval())
    with pytest.raises(UnsupportedError, match=r"^model.layers.0.self_attn.v_proj is a LoraLayer, which tensor"):
        shard_for_training(random, mesh)
    unmerge_adapters(random)
    shard_for_training(random, mesh)


def test_blocks_with_adapters_are_whole_again_without_the_plan(mesh: DeviceMesh, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config)
    quantize(model, "int8")
    add_lora(model, LoraConfig(r=2, target_modules=("q_proj", "o_proj", "lm_head")))
    stored = [one for one in model.modules() if isinstance(one, StoredWeight)]
    before = [one.matrix.dequantize() for one in stored]
    ids = torch.tensor([[5, 9, 31], [4, 90, 2]])
    expected = model(ids).logits
    shard_for_training(model, mesh)
    assert torch.equal(model(ids).logits.full_tensor(), expected)
    plan.remove(model, "tensor")
    assert all(torch.equal(one.matrix.dequantize(), matrix) for one, matrix in zip(stored, before, strict=True))
    assert torch.equal(model(ids).logits, expected)
