"""A fused model writes what the plain fp32 model of the same weights writes, token for token."""

from typing import Any

import pytest
import torch

from llamita.cache.growing import GrowingCache
from llamita.plans.cpu import fuse
from tests.unit.plans.cpu.models import ROPES, plain, prompt, twins, write

CHANGES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "every head its own": {"num_key_value_heads": 6},
    "one key head": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
    "wide heads": {"head_dim": 80, "num_attention_heads": 3, "num_key_value_heads": 1},
    "odd sizes": {"hidden_size": 49, "intermediate_size": 77, "vocab_size": 131},
    "window": {"sliding_window": 7},
    "scale": {"attention_scale": 0.4},
    **{name: {"rope_parameters": {"rope_theta": 10_000.0, **rope}} for name, rope in ROPES.items()},
}


@pytest.mark.parametrize("name", CHANGES)
def test_kinds_of_models(name: str) -> None:
    expected, fused = twins(**CHANGES[name])
    for batch, tokens in ((1, 1), (1, 13), (2, 40)):
        ids = prompt(batch, tokens)
        assert torch.equal(write(fused, ids), write(expected, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_halves_write_what_the_same_weights_write_in_fp32(dtype: torch.dtype, batch: int) -> None:
    """Up to the cache's rounding, which keys and values of these sizes bear."""
    expected, fused = twins(dtype, num_hidden_layers=2)
    ids = prompt(batch, 9)
    assert torch.equal(write(fused, ids, max_new_tokens=8), write(expected, ids, max_new_tokens=8))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}], ids=["whole", "window"])
def test_rows_of_different_lengths(batch: int, changes: dict[str, Any]) -> None:
    expected, fused = twins(**changes)
    ids, mask = prompt(batch, 12), torch.ones(batch, 12, dtype=torch.long)
    for row in range(1, batch):
        mask[row, : row % 11] = 0
    ids = ids * mask
    assert torch.equal(write(fused, ids, attention_mask=mask), write(expected, ids, attention_mask=mask))
    alone = write(fused, ids[-1:, (batch - 1) % 11 :])
    assert torch.equal(write(fused, ids, attention_mask=mask)[-1, 12:], alone[0, 12 - (batch - 1) % 11 :])


@pytest.mark.parametrize(
    "flags",
    [
        {"prompt_lookup_num_tokens": 4},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"repetition_penalty": 1.3},
        {"guidance_scale": 1.5},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
    ],
    ids=str,
)
def test_ways_of_writing(flags: dict[str, Any]) -> None:
    expected, fused = twins()
    ids = prompt(1, 6).repeat(1, 3)
    assert torch.equal(write(fused, ids, **flags), write(expected, ids, **flags))


def test_drawn_tokens_are_the_same() -> None:
    expected, fused = twins()
    ids = prompt(2)
    flags = {"do_sample": True, "top_k": 20, "seed": [3, 4]}
    assert torch.equal(write(fused, ids, **flags), write(expected, ids, **flags))


def test_a_draft_model_may_be_fused_too() -> None:
    expected, fused = twins()
    draft = fuse(plain(num_hidden_layers=1))
    ids = prompt()
    assert torch.equal(write(fused, ids, assistant_model=draft), write(expected, ids))


def test_writing_goes_on_from_a_cache() -> None:
    expected, fused = twins()
    ids, cache = prompt(1, 20), GrowingCache()
    with torch.no_grad():
        fused(ids[:, :15], past_key_values=cache)
    assert cache.length == 15
    assert torch.equal(write(fused, ids, past_key_values=cache), write(expected, ids))


def test_a_text_longer_than_the_room_a_cache_begins_with() -> None:
    expected, fused = twins(num_hidden_layers=1, max_position_embeddings=1024)
    ids = prompt(1, 250)
    assert torch.equal(write(fused, ids, max_new_tokens=40), write(expected, ids, max_new_tokens=40))
