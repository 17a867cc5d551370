"""Attention in fixed blocks: equal to the reference, and equal to itself whatever is computed beside a token."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.attention.eager import attend as eager
from llamita.attention.fixed import KEYS, ROWS, attend
from llamita.attention.mask import Mask
from llamita.errors import UnsupportedError
from tests.unit.attention.test_attention import MASKS, H, N, inputs, seen

CPU = torch.device("cpu")
LENGTH = 150  # several blocks of keys, the last of them not full


def whole(kv_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of one text, and what its tokens get when it is computed alone, in one pass."""
    q, k, v = (x[:1] for x in inputs(LENGTH, LENGTH, kv_heads, dtype))
    return q, k, v, attend(q, k, v, Mask(LENGTH, LENGTH, device=CPU), scale=0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("case", MASKS)
def test_equals_eager(case: str, kv_heads: int, dtype: torch.dtype) -> None:
    queries, keys, given = MASKS[case]
    mask = Mask(queries, keys, device=CPU, **given)
    q, k, v = inputs(queries, keys, kv_heads, dtype)
    expected, out = eager(q, k, v, mask, scale=0.25), attend(q, k, v, mask, scale=0.25)
    assert out.shape == expected.shape == (2, queries, N, H)
    assert out.dtype == dtype
    assert out.isfinite().all()
    tolerance = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    is_real = seen(mask)
    if mask.padding is not None:  # what stands in the padding gets zeros
        ahead = int(mask.offset) - mask.first
        is_real = is_real & mask.padding[:, ahead : ahead + queries, None]
        assert not out[~is_real].any()
    torch.testing.assert_close(out[is_real], expected[is_real], atol=tolerance, rtol=tolerance)


def test_equals_eager_over_many_blocks() -> None:
    for window in (None, 3, 70, 149):
        mask = Mask(LENGTH, LENGTH, device=CPU, window=window)
        q, k, v = inputs(LENGTH, LENGTH, 2, torch.float32)
        torch.testing.assert_close(
            attend(q, k, v, mask, scale=0.25), eager(q, k, v, mask, scale=0.25), atol=2e-6, rtol=2e-6
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_cut_into_passes_changes_no_bit(kv_heads: int, dtype: torch.dtype) -> None:
    q, k, v, expected = whole(kv_heads, dtype)
    for cuts in ([1, 2, 63, 64, 65, 100, 149], list(range(1, LENGTH))):
        for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
            mask = Mask(end - start, end, device=CPU, offset=start)
            out = attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask, scale=0.25)
            assert torch.equal(out, expected[:, start:end])


@pytest.mark.parametrize("offset", [0, torch.tensor(0)], ids=["count", "tensor"])
def test_free_slots_change_no_bit(offset: int | Tensor) -> None:
    q, k, v, expected = whole(2, torch.float32)
    k, v = (torch.cat((x, 1e30 * torch.ones_like(x)), dim=2) for x in (k, v))
    mask = Mask(LENGTH, 2 * LENGTH, device=CPU, offset=offset)
    assert torch.equal(attend(q, k, v, mask, scale=0.25), expected)


@pytest.mark.parametrize("left", [1, 7, 64, 65])
def test_other_rows_and_padding_change_no_bit(left: int) -> None:
    q, k, v, expected = whole(3, torch.float32)
    padded = [torch.cat((torch.randn(1, x.shape[1], left, H), x), dim=2) for x in (q, k, v)]
    padded = [torch.cat((torch.randn_like(x), x, torch.randn_like(x))) for x in padded]
    padding = torch.ones(3, LENGTH + left, dtype=torch.bool)
    padding[1, :left] = False
    padding[2, 5] = False
    out = attend(*padded, Mask(LENGTH + left, LENGTH + left, device=CPU, padding=padding), scale=0.25)
    assert torch.equal(out[1:2, left:], expected)
    assert not out[1, :left].any()


def test_a_hole_in_the_padding_changes_no_bit() -> None:
    q, k, v, expected = whole(2, torch.float32)
    real = torch.rand(1, 2 * LENGTH) < 0.5
    real[:, real[0].cumsum(0) > LENGTH] = False
    real[:, -(LENGTH - int(real.sum())) :] |= int(real.sum()) < LENGTH
    columns = real[0].nonzero().flatten()[:LENGTH]
    real = torch.zeros_like(real).index_fill(1, columns, True)
    spread = [torch.randn(1, x.shape[1], 2 * LENGTH, H).index_copy(2, columns, x) for x in (q, k, v)]
    out = attend(*spread, Mask(2 * LENGTH, 2 * LENGTH, device=CPU, padding=real), scale=0.25)
    assert torch.equal(out[:, columns], expected)


def test_documents_of_a_row_are_texts_of_their_own() -> None:
    q, k, v, expected = whole(2, torch.float32)
    before = [torch.randn(1, x.shape[1], 37, H) for x in (q, k, v)]
    packed = [torch.cat((a, b, a), dim=2) for a, b in zip(before, (q, k, v), strict=True)]
    numbers = torch.tensor([4] * 37 + [9] * LENGTH + [4] * 37)[None]
    numbers[:, -37:] = 11
    out = attend(*packed, Mask(74 + LENGTH, 74 + LENGTH, device=CPU, documents=(numbers, numbers)), scale=0.25)
    assert torch.equal(out[:, 37:-37], expected)


@pytest.mark.parametrize("left", [0, 5])
def test_a_window_whose_oldest_keys_were_dropped_changes_no_bit(left: int) -> None:
    window, (q, k, v, _) = 40, whole(2, torch.float32)
    expected = attend(q, k, v, Mask(LENGTH, LENGTH, device=CPU, window=window), scale=0.25)
    first = LENGTH - window + left  # the number of the first slot kept, of a row with padding in front
    mask = Mask(
        1, window, device=CPU, offset=LENGTH - 1 + left, first=first, window=window,
        padding=torch.ones(1, window, dtype=torch.bool) if left else None,
        dropped=torch.tensor([first - left]) if left else None,
    )  # fmt: skip
    out = attend(q[:, :, -1:], k[:, :, -window:], v[:, :, -window:], mask, scale=0.25)
    assert torch.equal(out, expected[:, -1:])


def test_gradients_equal_eagers() -> None:
    leaves = [x.requires_grad_() for x in inputs(70, 70, 2, torch.float32)]
    mask = Mask(70, 70, device=CPU, padding=torch.arange(70)[None] >= torch.tensor([[0], [9]]))
    real = mask.padding
    assert real is not None
    wanted: list[Any] = [
        torch.autograd.grad(attended(*leaves, mask, scale=0.25)[real].square().sum(), leaves)
        for attended in (attend, eager)
    ]
    for ours, theirs in zip(*wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_layers_share_what_is_seen() -> None:
    mask = Mask(9, 9, device=CPU)
    q, k, v = inputs(9, 9, 3, torch.float32)
    attend(q, k, v, mask, scale=0.25)
    sights = mask.prepared["fixed"]
    attend(q, k, v, mask, scale=0.25)
    assert mask.prepared["fixed"] is sights


def test_blocks_of_keys_that_are_out_of_sight_are_not_read() -> None:
    mask = Mask(8 * KEYS, 8 * KEYS, device=CPU, window=2)
    q, k, v = inputs(8 * KEYS, 8 * KEYS, 6, torch.float32)
    attend(q, k, v, mask, scale=0.25)
    spans = mask.prepared["fixed"][0].spans
    assert len(spans) == 8 * KEYS // ROWS
    assert all(last - first <= 2 for first, last in spans)


def test_dropout_is_refused() -> None:
    q, k, v = inputs(9, 9, 3, torch.float32)
    with pytest.raises(UnsupportedError, match=r'^attn_implementation="fixed" has no dropout: set attention_dropout'):
        attend(q, k, v, Mask(9, 9, device=CPU), scale=0.25, dropout=0.1)
