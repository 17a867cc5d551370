"""Quantized, offloaded and sink caches against plain tensors, under any sequence of operations, the disk among them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.cache import Cache, OffloadedCache, QuantizedCache, SinkCache
from llamita.cache.saved import load, save

ROWS, LAYERS, SINKS, WINDOW, GROUP, RESIDUAL = 3, 2, 2, 4, 4, 3
MAKERS: dict[str, Callable[[], Cache]] = {
    "int8": lambda: QuantizedCache(8, group=GROUP, residual=RESIDUAL),
    "int4": lambda: QuantizedCache(4, group=GROUP, residual=RESIDUAL),
    "offloaded": OffloadedCache,
    "sink": lambda: SinkCache(WINDOW, sinks=SINKS),
}
# Numbers lie from 0 to 1: twice half a step, for tokens that a crop put back and that were rounded again.
ERROR = {"int8": 2 * 0.5 / 255 + 1e-6, "int4": 2 * 0.5 / 15 + 1e-6, "offloaded": 0.0, "sink": 0.0}
OPERATIONS = st.lists(
    st.tuples(st.just("append"), st.integers(1, 6))
    | st.tuples(st.just("crop"), st.integers(-6, 12))
    | st.tuples(st.just("select"), st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=ROWS))
    | st.tuples(st.just("repeat"), st.just(2))
    | st.tuples(st.just("fork"), st.booleans())
    | st.tuples(st.just("save"), st.none())
    | st.tuples(st.just("reset"), st.none()),
    max_size=12,
)


def on_disk(cache: Cache) -> Cache:
    with tempfile.TemporaryDirectory() as folder:
        save(cache, Path(folder) / "cache", fingerprint="a")
        return load(Path(folder) / "cache", fingerprint="a")


def forked(cache: Cache, goes_on_with_the_twin: bool) -> Cache:
    twin = cache.fork()
    if goes_on_with_the_twin:
        cache, twin = twin, cache
    for layer in range(len(twin)):
        nines = torch.full((twin.keys[0].shape[0], 2, 5, 8), 9.0)
        twin.update(nines, nines, layer)
    twin.reset()
    return cache


@given(st.sampled_from(sorted(MAKERS)), OPERATIONS, st.integers(0, 2**31))
def test_equals_a_tensor(name: str, operations: list[tuple[str, object]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache, rows = MAKERS[name](), ROWS
    whole = torch.empty(LAYERS, 2, ROWS, 2, 0, 8)  # layer, key or value, then (B, K, S, H)
    seen: list[int] = []  # columns of `whole` in sight
    for operation, value in operations:
        match operation, value:
            case "append", int(count):
                new = torch.rand(LAYERS, 2, rows, 2, count, 8, generator=generator)
                seen = [*seen, *range(whole.shape[4], whole.shape[4] + count)]
                whole = torch.cat((whole, new), dim=4)
                assert cache.visible_range(count)[1] == len(seen)
                for layer in range(LAYERS):
                    stored = torch.stack(cache.update(new[layer, 0], new[layer, 1], layer))
                    assert torch.equal(stored[..., -count:, :], new[layer])
                    assert (stored - whole[layer][..., seen, :]).abs().max() <= ERROR[name]
                if name == "sink" and len(seen) > SINKS + WINDOW - 1:
                    seen = [*seen[:SINKS], *seen[1 - WINDOW :]]
            case "crop", int(to):
                kept = to if to >= 0 else cache.length + to
                if not 0 <= kept <= cache.length or (len(seen) < cache.length and 0 < kept < cache.length):
                    continue
                cache.crop(to)
                whole, seen = whole[..., :kept, :], seen[:kept]
            case "select", list(order):
                order = [row % rows for row in order]
                cache.select(torch.tensor(order))
                whole, rows = (whole[:, :, order], len(order)) if len(cache) else (whole, rows)
            case "repeat", int(times):
                if len(cache) and rows < 8:
                    cache.repeat(times)
                    whole, rows = whole.repeat_interleave(times, 2), rows * times
            case "fork", bool(twin):
                cache = forked(cache, twin)
            case "save", _:
                cache = on_disk(cache)
            case "reset", _:
                cache.reset()
                whole, seen = whole[..., :0, :], []
        assert cache.length == whole.shape[4]
        if cache.length:
            stored = torch.stack([torch.stack(pair) for pair in cache])
            assert (stored - whole[..., seen, :]).abs().max() <= ERROR[name]
