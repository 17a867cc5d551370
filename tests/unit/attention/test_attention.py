"""Every backend against the reference, over masks, grouped heads and dtypes; nothing is NaN where nothing is seen."""

from typing import Any

import pytest
import torch

from llamita.attention import BACKENDS, backend
from llamita.attention.eager import attend as eager
from llamita.attention.flash import attend as flash
from llamita.attention.mask import Mask
from llamita.attention.sdpa import attend as sdpa
from llamita.errors import UnsupportedError

CPU = torch.device("cpu")
B, N, H = 2, 6, 16
# Row 0 is padded on the left, row 1 on the right.
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 1, 1]])
TORN = torch.rand(B, N, 5, 9, generator=torch.Generator().manual_seed(1)) > 0.4
TORN[1, 2, 3] = False

MASKS: dict[str, tuple[int, int, dict[str, Any]]] = {  # T, S, and the rest
    "plain": (9, 9, {}),
    "one query": (1, 9, {"offset": 8}),
    "several queries behind a cache": (5, 9, {"offset": 4}),
    "window": (9, 9, {"window": 3}),
    "window behind a cache": (5, 9, {"offset": 11, "first": 7, "window": 5}),
    "padding": (9, 9, {"padding": PADDING}),
    "padding, one query": (1, 9, {"padding": PADDING, "offset": 8}),
    "documents": (9, 9, {"documents": (DOCUMENTS, DOCUMENTS)}),
    "offset in a tensor": (5, 9, {"offset": torch.tensor(2)}),
    "given bool": (5, 9, {"given": TORN[:, :1]}),
    "given bool per head": (5, 9, {"given": TORN}),
    "given bool per head, one query": (1, 9, {"given": TORN[:, :, :1]}),
    "given additive": (5, 9, {"given": torch.randn(B, 1, 5, 9, generator=torch.Generator().manual_seed(2))}),
    "given -inf": (5, 9, {"given": torch.zeros(B, N, 5, 9).masked_fill(~TORN, -torch.inf)}),
}


def inputs(queries: int, keys: int, kv_heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, N, queries, H), (B, kv_heads, keys, H), (B, kv_heads, keys, H))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def seen(mask: Mask) -> torch.Tensor:
    """(B, T, N): which query of which head sees anything, so that backends must agree on it."""
    return mask.visible.any(-1).expand(B, N, -1).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("case", MASKS)
def test_sdpa_equals_eager(case: str, kv_heads: int, dtype: torch.dtype) -> None:
    queries, keys, given = MASKS[case]
    mask = Mask(queries, keys, device=CPU, **given)
    q, k, v = inputs(queries, keys, kv_heads, dtype)
    expected, out = eager(q, k, v, mask, scale=0.25), sdpa(q, k, v, mask, scale=0.25)
    assert expected.shape == out.shape == (B, queries, N, H)
    assert expected.isfinite().all()
    assert out.isfinite().all()
    tolerance = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out[seen(mask)], expected[seen(mask)], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("number", range(len(MASKS)), ids=[*MASKS])
def test_flex_equals_eager(number: int) -> None:
    """With three heads of keys and with one by turns, and some in fp16 too: torch traces each call, for 0.2 s."""
    queries, keys, given = [*MASKS.values()][number]
    mask = Mask(queries, keys, device=CPU, **given)
    kinds = [(3 - number % 2 * 2, torch.float32), *[(1, torch.float16)] * (number % 4 == 0)]
    for kv_heads, dtype in kinds:
        q, k, v = inputs(queries, keys, kv_heads, dtype)
        expected, out = eager(q, k, v, mask, scale=0.25), backend("flex")(q, k, v, mask, scale=0.25)
        assert out.shape == expected.shape
        assert out.isfinite().all()
        tolerance = 2e-6 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(out[seen(mask)], expected[seen(mask)], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["eager", "sdpa", "flex"])
def test_gradients_and_values_are_finite_where_nothing_is_seen(name: str, dtype: torch.dtype) -> None:
    mask = Mask(9, 9, device=CPU, padding=torch.zeros(B, 9, dtype=torch.bool))
    q, k, v = inputs(9, 9, 3, dtype)
    q = q - 60  # large scores: the lowest number plus a negative score must not become -inf
    if name == "flex":
        assert backend(name)(q, k, v, mask, scale=0.25).isfinite().all()
        return
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = backend(name)(*leaves, mask, scale=0.25)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.float().sum(), leaves):
        assert gradient.isfinite().all()


def test_dropout_is_of_the_weights_and_keeps_their_mean() -> None:
    mask = Mask(9, 9, device=CPU)
    q, k, v = inputs(9, 9, 3, torch.float32)
    torch.manual_seed(0)
    runs = torch.stack([eager(q, k, v, mask, scale=0.25, dropout=0.3) for _ in range(600)])
    assert (runs.std(0) > 0).all()
    torch.testing.assert_close(runs.mean(0), eager(q, k, v, mask, scale=0.25), atol=0.25, rtol=0)


def test_unknown_backend_is_named_with_the_known() -> None:
    with pytest.raises(UnsupportedError, match=r'^attn_implementation="foo" is not supported: use one of eager, sdpa'):
        backend("foo")
    assert set(BACKENDS) == {"eager", "sdpa", "flex", "flash_attention_2", "fixed"}


def test_flex_says_what_it_does_not_do() -> None:
    q, k, v = inputs(9, 9, 3, torch.float32)
    mask = Mask(9, 9, device=CPU)
    with pytest.raises(UnsupportedError, match=r'^attn_implementation="flex" has no dropout: set attention_dropout'):
        backend("flex")(q, k, v, mask, scale=0.25, dropout=0.1)
    with pytest.raises(UnsupportedError, match=r"^attn_implementation=.flex. has no backward pass on the CPU"):
        backend("flex")(q.requires_grad_(), k, v, mask, scale=0.25)


def test_flex_makes_its_blocks_once_for_all_layers() -> None:
    q, k, v = inputs(9, 9, 3, torch.float32)
    mask = Mask(9, 9, device=CPU, padding=PADDING)
    backend("flex")(q, k, v, mask, scale=0.25)
    blocks = mask.prepared["flex"]
    backend("flex")(q, k, v, mask, scale=0.25)
    assert mask.prepared["flex"] is blocks


def test_flash_says_that_it_needs_cuda() -> None:
    q, k, v = inputs(9, 9, 3, torch.float32)
    with pytest.raises(
        UnsupportedError,
        match=r'^attn_implementation="flash_attention_2" needs a CUDA device and bfloat16 or float16, not cpu and '
        "float32: use sdpa$",
    ):
        flash(q, k, v, Mask(9, 9, device=CPU), scale=0.25)
