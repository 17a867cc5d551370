"""Attention of many new tokens: turned, stored, looked at in blocks of queries; held to reference.attend."""

import pytest
import torch
from torch import Tensor

from llamita.cache.growing import GrowingCache
from llamita.kernels import reference
from llamita.kernels.cpu import linear
from llamita.plans.cpu import fuse
from llamita.plans.cpu.prefill import Reading
from llamita.plans.cpu.workspace import Place
from tests.unit.plans.cpu.models import plain, prompt, twins

CLOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # bf16 rounds queries and likelihoods too


def both(
    tokens: int, slot: int, *, batch: int = 2, width: int = 16, heads: int = 6, keyed: int = 2, loud: float = 1.0,
    window: int | None = None, first: list[int] | None = None, dtype: torch.dtype = torch.float32,
    is_wide: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernels and the reference make of random heads over a random cache, (B, T, N, H) each.

    is_wide: the heads are fp32, as those of packed weights are, whatever the cache is.
    """
    model = plain(
        dtype, head_dim=width, num_attention_heads=heads, num_key_value_heads=keyed, sliding_window=window,
        num_hidden_layers=1,
    )  # fmt: skip
    if is_wide:
        model.model.layers[0].mlp.float()
    own = torch.float32 if is_wide else dtype
    q, k, v = (torch.randn(batch, tokens, n, width).to(own) for n in (heads, keyed, keyed))
    q = q * loud
    capacity, kept = slot + tokens + 11, None if first is None else torch.tensor(first)
    rooms = torch.zeros(2, batch, keyed, capacity, width)
    rooms[:, :, :, :slot] = torch.randn(2, batch, keyed, slot, width)
    rooms[:, :, :, slot + tokens :] = 1e4  # what is behind the last, from a text that was cropped, is never seen
    keys, values = rooms.to(dtype)
    place = Place(model, batch, tokens, slot, capacity, kept)
    angles = (place.cosines.view(batch, tokens, -1), place.sines.view(batch, tokens, -1))
    room = (keys.clone(), values.clone())
    expected = reference.attend(
        q, k, v, angles=angles, room=room, slot=slot, first=torch.tensor(first or [0] * batch),
        window=window or 1 << 40, scale=width**-0.5,
    )  # fmt: skip
    flat = [x.flatten(0, 1).flatten(1).contiguous() for x in (q, k, v)]
    out = Reading(model)._attend(flat[0], flat[1], flat[2], place, (keys, values))
    step = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]  # turned keys may round either way
    torch.testing.assert_close(keys, room[0], rtol=step, atol=step)
    assert torch.equal(values, room[1])
    assert out.dtype == own and bool(out.isfinite().all())
    return out.view(expected.shape).float(), expected


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(
    ("tokens", "slot"), [(17, 0), (16, 0), (33, 1), (70, 63), (130, 64), (5, 200), (1, 31), (40, 7)]
)
def test_lengths(dtype: torch.dtype, tokens: int, slot: int) -> None:
    out, expected = both(tokens, slot, dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize(("tokens", "slot"), [(16, 0), (33, 1), (63, 62)])
def test_heads_in_fp32_over_a_cache_in_bf16(tokens: int, slot: int) -> None:
    out, expected = both(tokens, slot, dtype=torch.bfloat16, is_wide=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=CLOSE[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("width", "heads", "keyed"), [(32, 3, 1), (48, 4, 4), (64, 2, 1), (80, 3, 3), (128, 2, 2), (256, 1, 1)]
)
def test_heads(dtype: torch.dtype, width: int, heads: int, keyed: int) -> None:
    out, expected = both(37, 9, width=width, heads=heads, keyed=keyed, dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("window", [1, 3, 15, 16, 17, 64, 65, 500])
def test_windows(dtype: torch.dtype, window: int) -> None:
    out, expected = both(50, 70, window=window, dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("slot", [0, 21])
def test_left_padding(dtype: torch.dtype, window: int | None, slot: int) -> None:
    """Padding that ends in the cache, at an odd slot, and among the new tokens, whose hidden ones are only finite."""
    first = [0, 13, slot + 18, slot + 39]
    out, expected = both(40, slot, batch=4, first=first, window=window, dtype=dtype)
    for row, begins in enumerate(first):
        hidden = max(0, begins - slot)
        torch.testing.assert_close(out[row, hidden:], expected[row, hidden:], rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_far_apart(dtype: torch.dtype) -> None:
    """Heads that look at one slot only: the largest score is found anew in every tile, and the sums so far shrink."""
    out, expected = both(40, 130, loud=200.0, dtype=dtype)
    far = (out - expected).abs().amax(-1) > 0.1  # where bf16 rounds two scores of hundreds, the larger may be another
    assert float(far.float().mean()) < (0.001 if dtype == torch.float32 else 0.1)


def test_threads_change_nothing() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            results.append(both(70, 30)[0])
            model, cache = fuse(plain()), GrowingCache()
            with torch.no_grad():
                for ids in prompt(1, 9).split(3, dim=1):
                    results.append(model(ids, past_key_values=cache).logits)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[i], results[i % 4]) for i in range(12))


@pytest.mark.parametrize("biased", [{}, {"mlp_bias": True, "attention_bias": True}], ids=["plain", "biased"])
@torch.no_grad()
def test_our_products_in_bf16_and_torchs(biased: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
    expected, fused = twins(torch.bfloat16, **sizes, **biased)
    ids, calls, add = prompt(2, 41), [], linear.add_many
    monkeypatch.setattr(linear, "add_many", lambda *given, **more: (calls.append(given), add(*given, **more)))
    wanted = expected(ids, logits_to_keep=1).logits
    for is_ours in (True, False):
        calls.clear()
        monkeypatch.setattr(linear, "_multiplies_pairs", lambda answer=is_ours: answer)
        mine = fused(ids, past_key_values=GrowingCache(), logits_to_keep=1).logits
        torch.testing.assert_close(mine, wanted, rtol=0, atol=0.15 * float(wanted.abs().max()))
        assert bool(calls) is is_ours
