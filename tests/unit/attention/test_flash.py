"""The bookkeeping of flash attention, with a kernel written out as a loop over sequences in place of the GPU's."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.attention.eager import attend as eager
from llamita.attention.flash import Layout, attend_by, by_torch, layout_of
from llamita.attention.mask import Mask
from llamita.errors import UnsupportedError

CPU = torch.device("cpu")
B, N, K, H = 3, 6, 3, 8
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]]).bool()
RIGHT = LEFT.flip(1)
HOLE = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 1, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 5]])


def loop(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float, window: int | None, dropout: float
) -> Tensor:
    """What a variable-length kernel does: each sequence alone, its last query on its last key."""
    starts, key_starts = layout.query_starts.tolist(), layout.key_starts.tolist()
    assert starts[-1] == q.shape[0]
    assert key_starts[-1] == k.shape[0] == v.shape[0]
    lengths = [b - a for a, b in pairwise(starts)]
    key_lengths = [b - a for a, b in pairwise(key_starts)]
    assert max(lengths) == layout.longest_query
    assert max(key_lengths) == layout.longest_key
    out = torch.empty(q.shape[0], q.shape[1], H)
    for start, length, key_start, key_length in zip(starts, lengths, key_starts, key_lengths, strict=False):
        mask = Mask(length, key_length, device=CPU, offset=key_length - length, window=window)
        parts = (q[start : start + length], *(x[key_start : key_start + key_length] for x in (k, v)))
        out[start : start + length] = eager(*(x.transpose(0, 1)[None] for x in parts), mask, scale=scale)[0]
    return out


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # T, S, and the rest
    "plain": (7, 7, {}),
    "window": (7, 7, {"window": 3}),
    "left padding": (7, 7, {"padding": LEFT}),
    "right padding": (7, 7, {"padding": RIGHT}),
    "left padding, window": (7, 7, {"padding": LEFT, "window": 3}),
    "right padding, window": (7, 7, {"padding": RIGHT, "window": 2}),
    "cached": (2, 7, {"offset": 5}),
    "cached, one query": (1, 7, {"offset": 6}),
    "cached, left padding": (2, 7, {"offset": 5, "padding": LEFT}),
    "cached, left padding, one query": (1, 7, {"offset": 6, "padding": LEFT}),
    "cached, a hole of padding": (2, 7, {"offset": 5, "padding": HOLE}),
    "cached, window": (2, 4, {"offset": 9, "first": 7, "window": 3}),
    "cached, window, padding": (1, 7, {"offset": 9, "first": 3, "window": 7, "padding": LEFT}),
    "static cache": (2, 7, {"offset": torch.tensor(3)}),
    "static cache, left padding": (2, 7, {"offset": torch.tensor(4), "padding": LEFT}),
    "documents": (7, 7, {"documents": (DOCUMENTS, DOCUMENTS)}),
    "documents, window": (7, 7, {"documents": (DOCUMENTS, DOCUMENTS), "window": 2}),
    "documents, padding": (7, 7, {"documents": (DOCUMENTS, DOCUMENTS), "padding": RIGHT}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_eager_on_real_tokens(case: str) -> None:
    queries, keys, given = CASES[case]
    mask = Mask(queries, keys, device=CPU, **given)
    q, k, v = torch.randn(B, N, queries, H), torch.randn(B, K, keys, H), torch.randn(B, K, keys, H)
    out = attend_by(loop, q, k, v, mask, scale=0.3, dropout=0.0)
    expected = eager(q, k, v, mask, scale=0.3)
    real = torch.ones(B, queries, dtype=torch.bool)
    if mask.padding is not None:
        real = mask.padding[:, int(mask.offset) - mask.first :][:, :queries]
    torch.testing.assert_close(out[real], expected[real], atol=1e-6, rtol=1e-6)
    assert (out[~real] == 0).all()


def test_no_padding_copies_no_tokens() -> None:
    layout = layout_of(Mask(2, 7, device=CPU, offset=5), B)
    assert layout.queries is None
    assert layout.keys is None
    assert layout.query_starts.tolist() == [0, 2, 4, 6]
    assert layout.key_starts.tolist() == [0, 7, 14, 21]
    assert layout.key_starts.dtype == torch.int32


def test_gradients_reach_real_tokens_only() -> None:
    mask = Mask(7, 7, device=CPU, padding=RIGHT)
    q, k, v = (torch.randn(B, heads, 7, H, requires_grad=True) for heads in (N, K, K))

    def kernel(q: Tensor, k: Tensor, v: Tensor, layout: Layout, **_: object) -> Tensor:
        return q + k.sum() + v.sum()

    attend_by(kernel, q, k, v, mask, scale=0.3, dropout=0.0).sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert torch.equal((x.grad != 0).any(-1).any(1), RIGHT)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"given": torch.ones(1, 1, 2, 7).bool()}, "reads no 4-D masks: use sdpa or flex$"),
        ({"documents": (DOCUMENTS[:, :2], DOCUMENTS)}, "cannot continue packed documents: use sdpa$"),
    ],
)
def test_says_what_it_does_not_do(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        layout_of(Mask(2, 7, device=CPU, offset=5, **given), B)


def test_torch_kernel_is_called_as_torch_declares_it() -> None:
    # On the meta device torch checks the call and works out the result's shape without a GPU.
    layout = layout_of(Mask(7, 7, device=CPU, padding=RIGHT), B)
    tokens = int(RIGHT.sum())
    q, k, v = (torch.empty(tokens, heads, H, device="meta", dtype=torch.bfloat16) for heads in (N, K, K))
    moved = Layout(*(x.to("meta") if isinstance(x, Tensor) else x for x in layout))
    out = by_torch(q, k, v, moved, scale=0.3, window=4, dropout=0.0)
    assert out.shape == (tokens, N, H)
    with pytest.raises(UnsupportedError, match=r"^torch's flash kernel has no dropout: set attention_dropout to 0"):
        by_torch(q, k, v, moved, scale=0.3, window=None, dropout=0.1)
