"""The three caches: what they give back, and what crop, reorder, repeat, select, reset and fork leave."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llamita import DynamicCache, LlamaConfig, LlamaForCausalLM, SlidingWindowCache, StaticCache
from llamita.cache import Cache
from llamita.cache.growing import GrowingCache
from llamita.errors import UsageError
from llamita.model.rope import LlamaRotaryEmbedding

B, K, H, LAYERS, ROOM, WINDOW = 3, 2, 4, 2, 11, 5
CONFIG = LlamaConfig(
    vocab_size=61, hidden_size=16, intermediate_size=28, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=K, max_position_embeddings=32,
)  # fmt: skip
MAKERS: dict[str, Callable[[], Cache]] = {
    "dynamic": DynamicCache,
    "growing": GrowingCache,
    "static": lambda: StaticCache(CONFIG, batch=B, capacity=ROOM),
    "sliding": lambda: SlidingWindowCache(window=WINDOW),
}


def filled(cache: Cache, length: int = 4, *, seed: int = 0) -> tuple[Cache, list[tuple[Tensor, Tensor]]]:
    """A cache of so many tokens, and per layer what was put in."""
    generator = torch.Generator().manual_seed(seed)
    put = [tuple(torch.randn(B, K, length, H, generator=generator) for _ in "kv") for _ in range(LAYERS)]
    for layer, (k, v) in enumerate(put):
        cache.update(k, v, layer)
    return cache, put


def holds(cache: Cache, expected: list[tuple[Tensor, Tensor]]) -> bool:
    return len(cache) == LAYERS and all(
        torch.equal(x, y)
        for pair, wanted in zip(cache, expected, strict=True)
        for x, y in zip(pair, wanted, strict=True)
    )


@pytest.mark.parametrize("name", MAKERS)
def test_update_appends_and_shows_all_in_sight(name: str) -> None:
    cache, first = filled(MAKERS[name](), 3)
    assert cache.length == cache.get_seq_length() == 3
    more = torch.randn(B, K, 2, H)
    start, count = cache.visible_range(2)
    k, v = cache.update(more, -more, 0)
    assert k.shape == v.shape == (B, K, count, H)
    assert torch.equal(k[:, :, 3 - start : 5 - start], more)
    assert torch.equal(v[:, :, : 3 - start], first[0][1])
    assert torch.equal(v[:, :, 3 - start : 5 - start], -more)
    cache.update(more, more, 1)
    assert cache.length == 5


@pytest.mark.parametrize("name", MAKERS)
def test_the_names_of_transformers(name: str) -> None:
    """Those of 4.57: 5 has `cache[0]` and the legacy caches no more, which scripts ask for the length of a text."""
    cache, put = filled(MAKERS[name]())
    pairs = cache.to_legacy_cache()
    assert all(torch.equal(cache[layer][0], pairs[layer][0]) for layer in (0, -1))
    assert cache[0][0].shape == cache[-1][1].shape == put[0][0].shape
    assert holds(DynamicCache.from_legacy_cache(pairs), put)
    rows = torch.tensor([2, 0, 0])
    cache.reorder_cache(rows)
    assert holds(cache, [(k[rows], v[rows]) for k, v in put])
    if name != "static":
        cache.batch_select_indices(torch.tensor([1, 2]))
        cache.batch_repeat_interleave(2)
        assert holds(cache, [(k[[0, 0, 0, 0]], v[[0, 0, 0, 0]]) for k, v in put])
    with pytest.raises(IndexError):
        cache[LAYERS]


def test_a_legacy_cache_of_nothing_and_of_no_pairs() -> None:
    assert len(DynamicCache.from_legacy_cache()) == len(DynamicCache.from_legacy_cache(())) == 0
    with pytest.raises(UsageError, match=r"^past_key_values is a list, but not of \(keys, values\)"):
        DynamicCache.from_legacy_cache([(torch.zeros(1, 2, 3, 4),)])


@pytest.mark.parametrize("name", MAKERS)
def test_crop_forgets_the_end(name: str) -> None:
    for length, kept in ((2, 2), (-1, 3), (4, 4), (0, 0), (-4, 0)):
        cache, put = filled(MAKERS[name]())
        cache.crop(length)
        assert cache.length == kept
        if kept:
            assert holds(cache, [(k[:, :, :kept], v[:, :, :kept]) for k, v in put])
    for wrong in (5, -5):
        with pytest.raises(ValueError, match=rf"^cannot crop a cache of 4 tokens to {wrong}: give at most its length$"):
            filled(MAKERS[name]())[0].crop(wrong)


@pytest.mark.parametrize("name", MAKERS)
def test_reset_makes_it_as_new(name: str) -> None:
    cache, _ = filled(MAKERS[name](), 4, seed=1)
    cache.reset()
    assert cache.length == 0
    _, put = filled(cache, 3)
    assert cache.length == 3
    assert holds(cache, put)


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_reordered_selected_and_repeated(name: str) -> None:
    rows = torch.tensor([2, 0, 0])
    cache, put = filled(MAKERS[name]())
    cache.reorder(rows)
    assert holds(cache, [(k[rows], v[rows]) for k, v in put])
    cache, put = filled(MAKERS[name]())
    cache.select(torch.tensor([1]))
    assert holds(cache, [(k[1:2], v[1:2]) for k, v in put])
    cache, put = filled(MAKERS[name]())
    cache.repeat(2)
    assert holds(cache, [(k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)) for k, v in put])


@pytest.mark.parametrize("name", MAKERS)
def test_a_fork_and_its_origin_do_not_reach_each_other(name: str) -> None:
    for changes_the_twin in (True, False):
        cache, put = filled(MAKERS[name]())
        twin = cache.fork()
        assert type(twin) is type(cache)
        changed, left = (twin, cache) if changes_the_twin else (cache, twin)
        for layer in range(LAYERS):
            changed.update(torch.ones(B, K, 1, H), torch.ones(B, K, 1, H), layer)
        changed.reorder(torch.tensor([2, 1, 0]))
        assert (changed.length, left.length) == (5, 4)
        assert holds(left, put)


@pytest.mark.parametrize("name", MAKERS)
def test_positions_move_with_the_rows(name: str) -> None:
    config = CONFIG.replace(rope_scaling={"type": "dynamic", "factor": 2.0})
    cache = StaticCache(config, batch=B, capacity=ROOM) if name == "static" else MAKERS[name]()
    positions = torch.arange(12).view(B, 4)
    assert torch.equal(cache.append_positions(positions)[:, :4], positions)
    filled(cache)
    cache.reorder(torch.tensor([1, 2, 0]))
    cache.crop(2)
    placed = cache.append_positions(torch.full((1, 1), 99).expand(B, -1))
    assert torch.equal(placed[:, :2], positions[[1, 2, 0], :2])
    assert (placed[:, 2] == 99).all()


def test_static_room_has_an_end_and_keeps_its_addresses() -> None:
    cache, _ = filled(MAKERS["static"](), 9)
    assert cache.capacity == ROOM
    assert DynamicCache().capacity is None
    address = cache.keys[0].data_ptr()
    with pytest.raises(ValueError, match=r"^9 cached and 3 new tokens do not fit a StaticCache of 11: make it larger$"):
        cache.visible_range(3)
    for change in (lambda: cache.crop(4), cache.reset, lambda: cache.reorder(torch.tensor([0, 0, 0]))):
        change()
        assert cache.keys[0].data_ptr() == address
    with pytest.raises(ValueError, match=r"^this StaticCache was made for a rotary type of fixed frequencies"):
        cache.append_positions(torch.zeros(B, 1, dtype=torch.long))


def test_sliding_keeps_only_what_a_later_query_sees() -> None:
    cache, put = filled(MAKERS["sliding"](), 9)
    assert cache.length == 9
    assert cache.visible_range(2) == (5, 6)
    assert holds(cache, [(k[:, :, -WINDOW + 1 :], v[:, :, -WINDOW + 1 :]) for k, v in put])
    with pytest.raises(ValueError, match=r"^this sliding cache has dropped tokens that a crop to 7 needs again: fork"):
        cache.crop(7)
    one = SlidingWindowCache(window=1)
    filled(one, 3)
    assert one.visible_range(2) == (3, 2)


def run(model: LlamaForCausalLM, ids: Tensor, cache: Cache, cuts: list[int]) -> Tensor:
    """Logits of a sequence given to the model in pieces."""
    pieces = [model(piece, past_key_values=cache, use_cache=True).logits for piece in ids.split(cuts, dim=1)]
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("cuts", [[10], [4, 1, 1, 3, 1], [1] * 10, [7, 3]])
@pytest.mark.parametrize("name", MAKERS)
def test_pieces_give_what_the_whole_gives(name: str, cuts: list[int]) -> None:
    config = CONFIG.replace(sliding_window=WINDOW) if name == "sliding" else CONFIG
    model = LlamaForCausalLM(config.replace(initializer_range=0.3)).eval()
    ids = torch.randint(0, 61, (B, 10))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(run(model, ids, MAKERS[name](), cuts), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_left_padded_rows_decode_as_if_alone(name: str) -> None:
    config = CONFIG.replace(sliding_window=WINDOW) if name == "sliding" else CONFIG
    model = LlamaForCausalLM(config.replace(initializer_range=0.3)).eval()
    ids = torch.randint(0, 61, (B, 10))
    mask = torch.ones(B, 10, dtype=torch.long)
    for row, pads in enumerate((0, 3, 2)):
        mask[row, :pads] = 0
    cache, logits = MAKERS[name](), []
    with torch.no_grad():
        for start, end in ((0, 6), (6, 7), (7, 9), (9, 10)):
            logits.append(model(ids[:, start:end], mask[:, :end], past_key_values=cache, use_cache=True).logits)
        for row, pads in enumerate((0, 3, 2)):
            alone = model(ids[row : row + 1, pads:], use_cache=False).logits
            torch.testing.assert_close(torch.cat(logits, 1)[row : row + 1, pads:], alone, atol=2e-5, rtol=2e-5)


def test_static_decode_compiles_once_for_all_lengths() -> None:
    torch._dynamo.reset()
    model = LlamaForCausalLM(CONFIG.replace(initializer_range=0.3)).eval()
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    step = torch.compile(model, fullgraph=True, backend=count)
    ids = torch.randint(0, 61, (B, ROOM))
    cache = MAKERS["static"]()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        model(ids[:, :3], past_key_values=cache, use_cache=True)
        for at in range(3, ROOM):
            logits = step(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits
            torch.testing.assert_close(logits[:, 0], expected[:, at], atol=2e-5, rtol=2e-5)
    assert graphs == 1
    assert cache.length == ROOM


# Rotary types whose frequencies depend on the length


GROWING = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [3.0, 5.0],
        "original_max_position_embeddings": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["dynamic", "static"])
@pytest.mark.parametrize("rope", GROWING)
def test_keys_always_stand_at_the_base_of_the_query(rope: str, name: str) -> None:
    config = CONFIG.replace(
        rope_parameters=None, rope_scaling=GROWING[rope], max_position_embeddings=8, num_hidden_layers=1
    )
    model = LlamaForCausalLM(config.replace(initializer_range=0.5)).eval()
    ids = torch.randint(0, 61, (B, 10))  # 2 tokens beyond the switch length
    with torch.no_grad():
        # In one layer the last token depends on nothing but its own view of all keys: any cut gives the same.
        expected = model(ids, use_cache=False).logits[:, -1]
        for cuts in ([9, 1], [3, 4, 3], [1] * 10):
            cache = StaticCache(config, batch=B, capacity=ROOM) if name == "static" else DynamicCache()
            torch.testing.assert_close(run(model, ids, cache, cuts)[:, -1], expected, atol=1e-5, rtol=1e-5)
            module = LlamaRotaryEmbedding(config)
            assert torch.equal(
                next(iter(cache))[0].shape[2:] and cache.positions[:, :10], torch.arange(10).expand(B, -1)
            )
            assert module(torch.arange(10)[None], torch.float32).depends_on_length


@pytest.mark.parametrize("rope", GROWING)
def test_up_to_the_switch_length_the_stored_keys_cost_no_bit(rope: str) -> None:
    config = CONFIG.replace(rope_scaling=GROWING[rope], max_position_embeddings=8)
    growing = LlamaForCausalLM(config.replace(initializer_range=0.5)).eval()
    short = GROWING[rope].get("short_factor")
    rotated: list[Tensor] = []
    for stores_rotated in (False, True):
        # The same frequencies under a type that stores keys rotated: linear by 1, or longrope's short set by hand.
        model = growing
        if stores_rotated:
            model = LlamaForCausalLM(config.replace(rope_scaling={"rope_type": "linear", "factor": 1.0})).eval()
            model.load_state_dict(growing.state_dict())
            inv_freq = growing.model.rotary_emb.inv_freq
            model.model.rotary_emb.inv_freq = inv_freq.clone()
            model.model.rotary_emb.attention_factor = growing.model.rotary_emb.attention_factor
        ids = torch.arange(8 * B).view(B, 8) % 61
        with torch.no_grad():
            rotated.append(run(model, ids, DynamicCache(), [3, 1, 1, 2, 1]))
    assert (short is None) == (rope == "dynamic")
    assert torch.equal(*rotated)
