"""Keys kept un-rotated: the same bits as rotated ones, and the sinks that need them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llamita import DynamicCache, LlamaConfig, LlamaForCausalLM, SlidingWindowCache, StaticCache
from llamita.cache import Cache, OffloadedCache, QuantizedCache, SinkCache
from llamita.model.rope import LlamaRotaryEmbedding

B, SINKS, WINDOW = 2, 2, 5
CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=16, intermediate_size=28, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.4,
)  # fmt: skip
MAKERS: dict[str, Callable[[bool], Cache]] = {
    "dynamic": lambda unrotated: DynamicCache(unrotated=unrotated),
    "static": lambda unrotated: StaticCache(CONFIG, batch=B, capacity=12, unrotated=unrotated),
    "sliding": lambda unrotated: SlidingWindowCache(4, unrotated=unrotated),
    "offloaded": lambda unrotated: OffloadedCache(unrotated=unrotated),
    "quantized": lambda unrotated: QuantizedCache(residual=64, unrotated=unrotated),
}


def run(
    model: LlamaForCausalLM, ids: Tensor, cache: Cache, cuts: list[int] | int, mask: Tensor | None = None
) -> Tensor:
    """Logits of a sequence read in pieces."""
    logits, end = [], 0
    with torch.no_grad():
        for piece in ids.split(cuts, dim=1):
            end += piece.shape[1]
            shown = None if mask is None else mask[:, :end]
            logits.append(model(piece, shown, past_key_values=cache, use_cache=True).logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_turning_later_costs_no_bit(name: str, is_padded: bool) -> None:
    window = 4 if name == "sliding" else None
    model = LlamaForCausalLM(CONFIG.replace(sliding_window=window)).eval()
    ids, cuts = torch.randint(0, 61, (B, 10)), [4, 1, 3, 1, 1]
    mask = torch.ones(B, 10, dtype=torch.long)
    mask[1, :3] = 0 if is_padded else 1
    later, now = (run(model, ids, MAKERS[name](unrotated), cuts, mask) for unrotated in (True, False))
    assert torch.equal(later, now)


def test_unrotated_keys_are_those_of_the_projection() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.randint(0, 61, (B, 6))
    plain, turned = DynamicCache(unrotated=True), DynamicCache()
    for cache in (plain, turned):
        run(model, ids, cache, [6])
    rotation = LlamaRotaryEmbedding(CONFIG)(torch.arange(6)[None], torch.float32)
    for (k, _), (rotated, _) in zip(plain, turned, strict=True):
        assert torch.equal(rotation(k.transpose(1, 2)).transpose(1, 2), rotated)
    assert torch.equal(plain.positions, torch.arange(6).expand(B, -1))
    assert turned.positions is None


# Attention sinks


def kept_at(step: int) -> list[int]:
    """The tokens that the query at a step sees: the sinks, and the window that ends with itself."""
    return sorted({*range(min(SINKS, step + 1)), *range(max(0, step - WINDOW + 1), step + 1)})


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_sinks_see_the_text_as_if_the_dropped_had_never_been(rope: str) -> None:
    # In a model of one layer keys depend on their own token only: cut out what is dropped, and read the rest afresh.
    scaling = None if rope == "default" else {"rope_type": "dynamic", "factor": 2.0}
    config = CONFIG.replace(num_hidden_layers=1, rope_parameters=None, rope_scaling=scaling, max_position_embeddings=8)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 61, (B, 40))
    cache = SinkCache(WINDOW, sinks=SINKS)
    logits = run(model, ids, cache, [3] + [1] * 37)
    for step in range(3, 40):
        alone = run(model, ids[:, kept_at(step)], DynamicCache(), 40)
        torch.testing.assert_close(logits[:, step], alone[:, -1], atol=1e-5, rtol=1e-5)
    assert cache.length == 40
    assert cache.keys[0].shape[2] == SINKS + WINDOW - 1
    assert torch.equal(cache.positions, torch.arange(SINKS + WINDOW - 1).expand(B, -1))


def test_a_sink_pass_of_several_tokens_sees_the_kept_and_itself() -> None:
    model = LlamaForCausalLM(CONFIG.replace(num_hidden_layers=1)).eval()
    ids = torch.randint(0, 61, (B, 20))
    logits = run(model, ids, SinkCache(WINDOW, sinks=SINKS), [12, 8])
    seen = [*range(SINKS), *range(12 - WINDOW + 1, 20)]
    alone = run(model, ids[:, seen], DynamicCache(), 20)
    torch.testing.assert_close(logits[:, 12:], alone[:, -8:], atol=1e-5, rtol=1e-5)


def test_positions_and_masks_may_be_given() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.randint(0, 61, (B, 14))
    expected = run(model, ids, SinkCache(WINDOW, sinks=SINKS), [1] * 14)
    mask = torch.ones(B, 14, dtype=torch.long)
    assert torch.equal(run(model, ids, SinkCache(WINDOW, sinks=SINKS), [1] * 14, mask), expected)
    cache, logits = SinkCache(WINDOW, sinks=SINKS), []
    with torch.no_grad():
        for i in range(14):
            positions = torch.tensor([[i]])
            logits.append(model(ids[:, [i]], position_ids=positions, past_key_values=cache, use_cache=True).logits)
    assert torch.equal(torch.cat(logits, 1), expected)
    mask[1, 0] = 0
    with pytest.raises(ValueError, match=r"^a sink cache keeps the first 2 slots, and a row has padding there"):
        run(model, ids, SinkCache(WINDOW, sinks=SINKS), [14], mask)


def test_a_hidden_token_leaves_with_its_slot() -> None:
    model = LlamaForCausalLM(CONFIG.replace(num_hidden_layers=1)).eval()
    ids, mask = torch.randint(0, 61, (B, 12)), torch.ones(B, 12, dtype=torch.long)
    mask[0, 9] = 0
    logits = run(model, ids, SinkCache(WINDOW, sinks=SINKS), [1] * 12, mask)
    shown = [i for i in kept_at(11) if i != 9]
    positions = torch.tensor([[kept_at(11).index(i) - (i > 9) for i in shown]])
    with torch.no_grad():
        alone = model(ids[:1, shown], position_ids=positions, past_key_values=DynamicCache(), use_cache=True).logits
    torch.testing.assert_close(logits[:1, -1], alone[:, -1], atol=1e-5, rtol=1e-5)


def test_sinks_move_with_their_rows_and_do_not_come_back() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    ids = torch.randint(0, 61, (B, 12))
    expected = run(model, ids, SinkCache(WINDOW, sinks=SINKS), [1] * 12)
    cache = SinkCache(WINDOW, sinks=SINKS)
    run(model, ids[:, :11], cache, 1)
    twin = cache.fork()
    cache.reorder(torch.tensor([1, 0]))
    torch.testing.assert_close(run(model, ids[[1, 0], 11:], cache, 1), expected[[1, 0], 11:], atol=1e-5, rtol=1e-5)
    twin.select(torch.tensor([1]))
    torch.testing.assert_close(run(model, ids[1:, 11:], twin, 1), expected[1:, 11:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"^this sliding cache has dropped tokens"):
        cache.crop(8)
    cache.reset()
    assert torch.equal(run(model, ids, cache, [1] * 12), expected)
