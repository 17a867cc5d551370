"""A cache that grows in place holds what one that copies holds, whatever happens to both."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache

DEEDS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 300)),
    st.tuples(st.just("reserve"), st.integers(1, 300)),
    st.tuples(st.just("crop"), st.integers(-3, 400)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
)
LAYERS, HEADS, WIDTH = 2, 3, 2


def write(cache: GrowingCache, start: int, new: torch.Tensor) -> None:
    """Fill reserved slots, as kernels do."""
    for (keys, values), layer in zip(cache.buffers, new, strict=True):
        keys[:, :, start : start + new.shape[4]] = layer[0]
        values[:, :, start : start + new.shape[4]] = layer[1]


@given(deeds=st.lists(DEEDS, max_size=8), seed=st.integers(0, 1000))
def test_growing_equals_dynamic(deeds: list[tuple[str, int | list[int]]], seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    growing, dynamic = GrowingCache(), DynamicCache()
    for deed, argument in deeds:
        if isinstance(argument, list):
            if dynamic.length:
                growing.select(torch.tensor(argument))
                dynamic.select(torch.tensor(argument))
        elif deed == "crop":
            if -dynamic.length <= argument <= dynamic.length:
                growing.crop(argument)
                dynamic.crop(argument)
        else:
            new = torch.randn(LAYERS, 2, 2, HEADS, argument, WIDTH, generator=made)  # layer, k or v, B, K, T, H
            for layer, (k, v) in enumerate(new):
                dynamic.update(k, v, layer)
            if deed == "reserve" and growing.length:
                write(growing, growing.reserve(argument), new)
            else:
                for layer, (k, v) in enumerate(new):
                    seen = growing.update(k, v, layer)
                    assert torch.equal(seen[0], dynamic.keys[layer]) and torch.equal(seen[1], dynamic.values[layer])
        assert (growing.length, len(growing)) == (dynamic.length, len(dynamic))
        assert all(map(torch.equal, growing.keys, dynamic.keys))
        assert all(map(torch.equal, growing.values, dynamic.values))
