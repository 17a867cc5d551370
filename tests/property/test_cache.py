"""The caches against a plain list of tokens, under any sequence of operations."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamita import DynamicCache, LlamaConfig, SlidingWindowCache, StaticCache
from llamita.cache import Cache

ROWS, LAYERS, ROOM, WINDOW = 3, 2, 60, 6
CONFIG = LlamaConfig(
    vocab_size=9, hidden_size=8, intermediate_size=4, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
MAKERS: dict[str, Callable[[], Cache]] = {
    "dynamic": DynamicCache,
    "static": lambda: StaticCache(CONFIG, batch=ROWS, capacity=ROOM, dtype=torch.float64),
    "sliding": lambda: SlidingWindowCache(window=WINDOW),
}
ROW_NUMBERS = st.lists(st.integers(0, ROWS - 1), min_size=ROWS, max_size=ROWS)
OPERATIONS = st.lists(
    st.tuples(st.just("append"), st.integers(1, 4))
    | st.tuples(st.just("crop"), st.integers(-5, 5))
    | st.tuples(st.just("reorder"), ROW_NUMBERS)
    | st.tuples(st.just("fork"), st.booleans())
    | st.tuples(st.just("reset"), st.none()),
    max_size=14,
)


def tensor(rows: list[list[float]], layer: int, sign: int) -> Tensor:
    """(B, K, S, H) that says of every number which token, layer, head and axis it belongs to."""
    tokens = torch.tensor(rows, dtype=torch.float64)[:, None, :, None]
    heads, axes = torch.arange(2)[None, :, None, None], torch.arange(2)[None, None, None, :]
    return sign * (tokens * 1000 + layer * 100 + heads * 10 + axes)


@given(st.sampled_from(sorted(MAKERS)), OPERATIONS)
def test_equals_a_list(name: str, operations: list[tuple[str, object]]) -> None:
    cache, rows, fresh = MAKERS[name](), [[] for _ in range(ROWS)], 0.0
    for operation, value in operations:
        length = len(rows[0])
        match operation, value:
            case "append", int(count):
                new = [[fresh + row + ROWS * at for at in range(count)] for row in range(ROWS)]
                fresh += ROWS * count
                rows = [old + more for old, more in zip(rows, new, strict=True)]
                first, seen = cache.visible_range(count)
                for layer in range(LAYERS):
                    k, v = cache.update(tensor(new, layer, 1), tensor(new, layer, -1), layer)
                    assert k.shape[2] == v.shape[2] == seen
                    part = [row[first : first + seen] for row in rows]
                    assert torch.equal(k[:, :, : len(part[0])], tensor(part, layer, 1))
                    assert torch.equal(v[:, :, : len(part[0])], tensor(part, layer, -1))
            case "crop", int(to):
                kept = to if to >= 0 else length + to
                dropped = name == "sliding" and length > WINDOW - 1 and 0 < kept < length
                if not 0 <= kept <= length or dropped:
                    continue
                cache.crop(to)
                rows = [row[:kept] for row in rows]
            case "reorder", list(order):
                if len(cache) and length:
                    cache.reorder(torch.tensor(order))
                    rows = [rows[row] for row in order]
            case "fork", bool(goes_on_with_the_twin):
                twin = cache.fork()
                if goes_on_with_the_twin:
                    cache, twin = twin, cache
                twin.reset()
            case "reset", _:
                cache.reset()
                rows = [[] for _ in range(ROWS)]
        assert cache.length == len(rows[0])
        if not cache.length:
            continue
        first = cache.visible_range(0)[0] if name == "sliding" else 0
        for layer, (k, v) in enumerate(cache):
            part = [row[first:] for row in rows]
            assert torch.equal(k, tensor(part, layer, 1))
            assert torch.equal(v, tensor(part, layer, -1))
