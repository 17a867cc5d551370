"""Batch-invariant mode: a row is what it is alone, bit for bit, however it is batched, padded, cached and cut."""

import copy
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llamita import LlamaConfig, LlamaForCausalLM, StaticCache
from llamita.cache import Cache, DynamicCache, SlidingWindowCache
from llamita.cache.growing import GrowingCache
from llamita.plans.invariant import invariant
from llamita.quant.surgery import quantize

LONGEST = 150  # more than two blocks of keys
WRITTEN = 10  # tokens that a row writes: the longest prompt of 61 then has more than one block
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "every head its own": {"num_key_value_heads": 6, "attention_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    "one for all": {"num_key_value_heads": 1, "mlp_bias": True, "intermediate_size": 87, "vocab_size": 101},
    "window": {"sliding_window": 40},
}


@cache
def ordinary(kind: str, dtype: str) -> LlamaForCausalLM:
    """A model whose attention is not flat and whose logits are far apart."""
    config = LlamaConfig(
        **{
            "vocab_size": 97, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 256,
            **MODELS[kind],
        }
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        for weight in model.parameters():
            weight.normal_(0, 0.25) if weight.ndim == 2 else weight.normal_(1, 0.1)
    return model.to(DTYPES[dtype])


@cache
def steady(kind: str, dtype: str) -> LlamaForCausalLM:
    return invariant(copy.deepcopy(ordinary(kind, dtype)))


def text(length: int, seed: int) -> Tensor:
    return torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(seed))


def states(model: LlamaForCausalLM, ids: Tensor, **inputs: Any) -> list[Tensor]:
    """The hidden states of every layer, and the logits."""
    output = model(ids, output_hidden_states=True, **inputs)
    return [*output.hidden_states, output.logits]


def batched(texts: list[Tensor], extra: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of the texts with padding on the left, `extra` more of it than they need."""
    longest = max(ids.shape[1] for ids in texts) + extra
    rows = [torch.nn.functional.pad(ids, (longest - ids.shape[1], 0), value=5) for ids in texts]
    masks = [torch.nn.functional.pad(torch.ones_like(ids), (longest - ids.shape[1], 0)) for ids in texts]
    return torch.cat(rows), torch.cat(masks)


def in_passes(model: LlamaForCausalLM, ids: Tensor, cuts: list[int], cache: Cache, mask: Tensor | None) -> list[Tensor]:
    """`states` of ids read in passes that end at the cuts."""
    passes = [
        states(model, ids[:, start:end], past_key_values=cache, attention_mask=None if mask is None else mask[:, :end])
        for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True)
    ]
    return [torch.cat(parts, dim=1) for parts in zip(*passes, strict=True)]


def assert_rows(found: list[Tensor], texts: list[Tensor], model: LlamaForCausalLM) -> None:
    for row, ids in enumerate(texts):
        for ours, alone in zip(found, states(model, ids, use_cache=False), strict=True):
            assert torch.equal(ours[row, -ids.shape[1] :], alone[0])


CACHES = ("dynamic", "static", "growing", "sliding")


def new_cache(name: str, config: LlamaConfig, rows: int, dtype: torch.dtype) -> Cache:
    if name == "static":
        return StaticCache(config, batch=rows, capacity=LONGEST + 20, dtype=dtype)
    if name == "sliding" and config.sliding_window is not None:
        return SlidingWindowCache(config.sliding_window)
    return GrowingCache() if name == "growing" else DynamicCache()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=4)
@given(data=st.data())
def test_a_row_of_a_ragged_batch_read_in_passes_is_the_row_alone(kind: str, dtype: str, data: st.DataObject) -> None:
    model = steady(kind, dtype)
    lengths = data.draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=4))
    texts = [text(length, seed) for seed, length in enumerate(lengths)]
    ids, mask = batched(texts, data.draw(st.integers(0, 9)))
    width = ids.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, width - 1), max_size=5))) if width > 1 else []
    assert_rows(states(model, ids, attention_mask=mask, use_cache=False), texts, model)
    memory = new_cache(data.draw(st.sampled_from(CACHES)), model.config, len(texts), DTYPES[dtype])
    assert_rows(in_passes(model, ids, cuts, memory, mask), texts, model)


# Each kind and each dtype twice or more; the test above has all pairs of them.
@pytest.mark.parametrize(("kind", "dtype"), [*product(["grouped"], DTYPES), *zip([*MODELS][1:], DTYPES, strict=True)])
def test_token_by_token_equals_the_whole(kind: str, dtype: str) -> None:
    model, ids = steady(kind, dtype), torch.cat([text(LONGEST, seed) for seed in (1, 2, 3)])
    every = list(range(1, LONGEST))
    found = in_passes(model, ids, every, DynamicCache(), None)
    for ours, whole in zip(found, states(model, ids, use_cache=False), strict=True):
        assert torch.equal(ours, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_documents_packed_in_a_row_are_what_they_are_alone(dtype: str) -> None:
    model, texts = steady("grouped", dtype), [text(length, length) for length in (70, 3, 77)]
    positions = torch.cat([torch.arange(ids.shape[1]) for ids in texts])[None]
    packed = states(model, torch.cat(texts, dim=1), position_ids=positions, use_cache=False)
    start = 0
    for ids in texts:
        for ours, alone in zip(packed, states(model, ids, use_cache=False), strict=True):
            assert torch.equal(ours[:, start : start + ids.shape[1]], alone)
        start += ids.shape[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", [{"do_sample": False}, {"do_sample": True, "temperature": 1.3, "top_p": 0.95}])
def test_a_row_writes_in_a_batch_what_it_writes_alone(dtype: str, draw: dict[str, Any]) -> None:
    model, texts = steady("grouped", dtype), [text(length, length) for length in (9, 61, 2, 33)]
    ids, mask = batched(texts, 0)
    options = {"max_new_tokens": WRITTEN, "eos_token_id": None, **draw}
    seeds = {"seed": [11, 12, 13, 14]} if draw["do_sample"] else {}
    together = model.generate(ids, attention_mask=mask, **options, **seeds)
    chunked = model.generate(ids, attention_mask=mask, prefill_chunk_size=7, **options, **seeds)
    assert torch.equal(together, chunked)
    for row, one in enumerate(texts):
        seed = {"seed": [11 + row]} if draw["do_sample"] else {}
        alone = model.generate(one, attention_mask=torch.ones_like(one), **options, **seed)
        assert torch.equal(alone[0, -WRITTEN:], together[row, -WRITTEN:])


@pytest.mark.parametrize("format", ["q8_0", "q4_0"])
def test_quantized_layers_are_invariant_too(format: str) -> None:
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    quantize(model, format)
    invariant(model)
    texts = [text(length, length) for length in (70, 1, 18)]
    ids, mask = batched(texts, 0)
    assert_rows(in_passes(model, ids, [3, 4, 20, 69], DynamicCache(), mask), texts, model)


def test_the_ordinary_mode_does_differ() -> None:
    model, ids = ordinary("grouped", "fp32"), torch.cat([text(LONGEST, seed) for seed in (1, 2, 3)])
    whole = states(model, ids, use_cache=False)[-1]
    assert not torch.equal(in_passes(model, ids, [9, 10], DynamicCache(), None)[-1], whole)
    torch.testing.assert_close(states(steady("grouped", "fp32"), ids)[-1], whole, atol=2e-4, rtol=2e-4)
