"""Decode steps as graphs: what is recorded, when it is recorded anew, and that nothing in a step reads the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache
from llamita.cache.static import StaticCache
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cuda.graphs import WARM_UPS, DecodeGraph, PlainStep


class Tape:
    """A recorder on the CPU: a replay runs the call again and writes its result where the recording said."""

    made: list["Tape"]

    def __init__(self, cache: StaticCache) -> None:
        self.cache = cache
        self.warm_ups = self.replays = 0

    def warm_up(self, call: Callable[[], object]) -> None:
        self.warm_ups += 1
        call()

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        length = self.cache.length
        self.call, self.result = call, torch.full_like(call(), torch.nan)
        self.cache.crop(length)  # a graph's recording does nothing
        return self.result

    def replay(self) -> None:
        self.replays += 1
        # A graph's kernels move no version counter.
        with torch.autograd._unsafe_preserve_version_counter((*self.cache.keys, *self.cache.values)):
            self.result.copy_(self.call())


@pytest.fixture
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.2)).eval()


def graph_of(model: LlamaForCausalLM, *, batch: int = 2, capacity: int = 20, padding: Tensor | None = None) -> Any:
    cache = StaticCache(model.config, batch=batch, capacity=capacity)
    tapes: list[Tape] = []

    def recorder() -> Tape:
        tapes.append(Tape(cache))
        return tapes[-1]

    return DecodeGraph(PlainStep(model, cache, padding=padding), cache, recorder=recorder), cache, tapes


def test_replays_what_the_model_does(model: LlamaForCausalLM) -> None:
    prompt, rest = torch.randint(0, 97, (2, 5)), torch.randint(0, 97, (2, 8))
    graph, cache, tapes = graph_of(model)
    theirs = DynamicCache()
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        model(prompt, past_key_values=theirs)
        for tokens in rest.split(1, dim=1):
            expected = model(tokens, past_key_values=theirs).logits[:, -1]
            torch.testing.assert_close(graph(tokens), expected)
    assert len(tapes) == 1
    assert (tapes[0].warm_ups, tapes[0].replays) == (WARM_UPS, 8)
    assert cache.length == 13
    for layer, (k, _) in enumerate(cache):
        torch.testing.assert_close(k, theirs.keys[layer])


def test_padding_on_the_left(model: LlamaForCausalLM) -> None:
    prompt, rest = torch.randint(0, 97, (2, 5)), torch.randint(0, 97, (2, 4))
    padding = torch.ones(2, 20, dtype=torch.bool)
    padding[1, :3] = False
    graph, cache, _ = graph_of(model, padding=padding)
    theirs = DynamicCache()
    with torch.no_grad():
        model(prompt, padding[:, :5], past_key_values=theirs)
        model(prompt, padding, past_key_values=cache)
        for step, tokens in enumerate(rest.split(1, dim=1)):
            expected = model(tokens, padding[:, : 6 + step], past_key_values=theirs).logits[:, -1]
            torch.testing.assert_close(graph(tokens), expected)


def test_the_result_lies_where_it_lay(model: LlamaForCausalLM) -> None:
    graph, _, _ = graph_of(model)
    first = graph(torch.tensor([[1], [2]]))
    before = first.clone()
    second = graph(torch.tensor([[3], [4]]))
    assert first is second and not torch.equal(first, before)


def test_records_anew_for_another_shape_and_for_other_tensors(model: LlamaForCausalLM) -> None:
    graph, cache, tapes = graph_of(model)
    graph(torch.zeros(2, 1, dtype=torch.long))
    graph(torch.zeros(2, 3, dtype=torch.long))
    assert len(tapes) == 2 and cache.length == 4
    cache.reorder(torch.tensor([1, 0]))
    cache.crop(2)
    graph(torch.zeros(2, 3, dtype=torch.long))
    assert len(tapes) == 2 and cache.length == 5
    cache.select(torch.tensor([1]))
    graph(torch.zeros(1, 3, dtype=torch.long))
    assert len(tapes) == 3 and cache.length == 8


def test_a_full_cache_is_refused_and_a_cropped_one_is_not(model: LlamaForCausalLM) -> None:
    graph, cache, _ = graph_of(model, capacity=6)
    token = torch.zeros(2, 1, dtype=torch.long)
    for _ in range(6):
        graph(token)
    with pytest.raises(UsageError, match="6 cached and 1 new tokens do not fit a StaticCache of 6"):
        graph(token)
    cache.crop(3)
    graph(token)
    with torch.no_grad():
        model(torch.zeros(2, 2, dtype=torch.long), past_key_values=cache)  # full again, and not by the graph
    with pytest.raises(UsageError, match="6 cached"):
        graph(token)


def test_what_no_graph_can_hold_is_refused(model: LlamaForCausalLM) -> None:
    cache = StaticCache(model.config, batch=1, capacity=4)
    with pytest.raises(UsageError, match="padding covers 3 slots, the cache has 4"):
        PlainStep(model, cache, padding=torch.ones(1, 3, dtype=torch.bool))
    model.set_attn_implementation("flash_attention_2")
    with pytest.raises(UsageError, match="use sdpa for a CUDA graph"):
        PlainStep(model, cache)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_step_reads_nothing_back_from_the_device(tiny_config: LlamaConfig, name: str, padded: bool) -> None:
    """A meta tensor has no value: whatever would wait for one, and so break a recording, fails here."""
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_config.replace(attn_implementation=name)).eval()
        cache = StaticCache(tiny_config, batch=2, capacity=9, device="meta")
        padding = torch.ones(2, 9, dtype=torch.bool) if padded else None
        step = PlainStep(model, cache, padding=padding)
        with torch.no_grad():
            logits = step(torch.zeros(2, 1, dtype=torch.long))
    assert logits.shape == (2, 97) and logits.device.type == "meta"
