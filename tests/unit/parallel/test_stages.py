"""Stages of a model: what each keeps, and that they are the model, one after another."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.stages import Received, cut, layers_of, view


@pytest.mark.parametrize(
    ("layers", "stages", "shares"), [(3, 2, [[0, 1], [2]]), (5, 3, [[0, 1], [2, 3], [4]]), (2, 2, [[0], [1]])]
)
def test_the_first_stages_have_one_layer_more(layers: int, stages: int, shares: list[list[int]]) -> None:
    assert [list(share) for share in layers_of(layers, stages)] == shares


def test_fewer_layers_than_stages_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^a model of 3 layers has no 4 stages: lower --pp, or --pp-stages of interleaved$"
    ):
        layers_of(3, 4)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_stages_are_the_model_and_weights_keep_their_names(is_tied: bool, count: int, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config.replace(tie_word_embeddings=is_tied))
    ids, positions = torch.randint(97, (2, 9)), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)
    stages = [copy.deepcopy(model) for _ in range(count)]
    states: Any = None
    for number, stage in enumerate(stages):
        cut(stage, [number], count)
        states = run(stage, states, ids, positions)
    assert torch.equal(states, model(ids, position_ids=positions, use_cache=False).logits)

    whole = dict(model.named_parameters())
    kept = [dict(stage.named_parameters()) for stage in stages]
    assert {name for one in kept for name in one} == whole.keys()
    assert all(torch.equal(weight, whole[name]) for one in kept for name, weight in one.items())
    twins = {name for one in kept for name in one if sum(name in other for other in kept) > 1}
    assert twins == ({"model.embed_tokens.weight"} if is_tied else set())
    assert (stages[-1].lm_head.weight is stages[-1].model.embed_tokens.weight) == is_tied


@pytest.mark.parametrize("is_tied", [False, True])
def test_several_stages_of_a_process_are_views_of_the_weights_it_keeps(is_tied: bool, tiny_config: LlamaConfig) -> None:
    model = LlamaForCausalLM(tiny_config.replace(tie_word_embeddings=is_tied, num_hidden_layers=4))
    ids, positions = torch.randint(97, (2, 9)), torch.arange(9)[None]
    processes, states = [copy.deepcopy(model), copy.deepcopy(model)], cast("Any", None)
    views = []
    for number, process in enumerate(processes):
        cut(process, (number, number + 2), 4)
        views.append([view(process, number + 2 * turn, 4) for turn in range(2)])
    for stage in (views[0][0], views[1][0], views[0][1], views[1][1]):
        states = run(stage, states, ids, positions)
    assert torch.equal(states, model(ids, position_ids=positions, use_cache=False).logits)
    for process, own in zip(processes, views, strict=True):
        parts = [{id(weight) for weight in one.parameters()} for one in own]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {id(weight) for weight in process.parameters()}


def run(stage: LlamaForCausalLM, states: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """What a stage makes of the hidden states of the one before."""
    if isinstance(embedding := cast("Any", stage.model.embed_tokens), Received):
        embedding.put(states)
    return stage(ids, position_ids=positions, use_cache=False).logits
