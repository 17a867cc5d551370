"""Any padding, window, cache and documents: what a backend computes for a token depends on what it may see, only."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.attention import eager, sdpa
from llamita.attention.flash import layout_of
from llamita.attention.mask import Mask
from llamita.context.packed import documents_of, positions_in

B, N, K, H = 2, 4, 2, 3


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    keys = draw(st.integers(1, 9))
    queries = draw(st.integers(1, keys))
    bits = st.lists(st.lists(st.booleans(), min_size=keys, max_size=keys), min_size=B, max_size=B)
    padding = draw(st.none() | bits)
    window = draw(st.none() | st.integers(1, 9))
    documents = None
    if queries == keys and draw(st.booleans()):
        starts = torch.tensor(draw(bits))
        numbers = starts.cumsum(-1)
        documents = (numbers, numbers)
    return Mask(
        queries, keys, device=torch.device("cpu"), offset=keys - queries, window=window, documents=documents,
        padding=None if padding is None else torch.tensor(padding),
    )  # fmt: skip


@given(masks(), st.integers(0, 2**31))
def test_what_is_hidden_changes_nothing_and_sdpa_equals_eager(mask: Mask, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, N, mask.queries, H, generator=generator)
    k, v = (torch.randn(B, K, mask.keys, H, generator=generator) for _ in "kv")
    expected = eager.attend(q, k, v, mask, scale=0.5)
    visible = mask.visible.expand(B, 1, -1, -1)[:, 0]  # (B, T, S)
    sees = visible.any(-1)
    assert expected.isfinite().all()
    torch.testing.assert_close(sdpa.attend(q, k, v, mask, scale=0.5)[sees], expected[sees], atol=1e-5, rtol=1e-5)
    for query in range(mask.queries):
        hidden = ~visible[:, query, None, :, None]
        other = eager.attend(q, k.masked_fill(hidden, 7.0), v.masked_fill(hidden, -3.0), mask, scale=0.5)
        assert torch.equal(other[:, query][sees[:, query]], expected[:, query][sees[:, query]])


@given(masks())
def test_a_layout_names_each_real_token_once(mask: Mask) -> None:
    layout = layout_of(mask, B)
    real = torch.ones(B, mask.keys, dtype=torch.bool) if mask.padding is None else mask.padding
    real_queries = real[:, mask.keys - mask.queries :]
    for numbers, tokens, starts, longest in (
        (layout.queries, real_queries, layout.query_starts, layout.longest_query),
        (layout.keys, real, layout.key_starts, layout.longest_key),
    ):
        if numbers is not None:
            assert torch.equal(numbers, tokens.flatten().nonzero()[:, 0])
        lengths = starts.diff()
        assert starts[0] == 0
        assert starts[-1] == tokens.sum()
        assert (lengths >= 0).all()
        assert longest == (lengths.max() if lengths.numel() else 0)
    assert (layout.key_starts.diff() >= layout.query_starts.diff()).all()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_positions_and_documents_say_the_same(lengths: list[int]) -> None:
    numbers = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    assert torch.equal(positions_in(numbers), positions)
    found = documents_of(positions)
    if len(lengths) == 1:
        assert found is None
    else:
        assert found is not None
        assert torch.equal(found[:, :, None] == found[:, None], numbers[:, :, None] == numbers[:, None])
