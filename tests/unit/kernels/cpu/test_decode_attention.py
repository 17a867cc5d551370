"""Attention of few new tokens over a cache, held to reference.attention bit for bit."""

import pytest
import torch

from tests.unit.kernels.cpu.attention_case import HAS_PAIRS, Case
from tests.unit.kernels.cpu.launch import DTYPES

WAYS = [False, True] if HAS_PAIRS else [False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("starts", [[0], [1], [15], [16], [63], [64], [130], [5, 70, 0]], ids=str)
def test_one_token_a_row(dtype: torch.dtype, starts: list[int]) -> None:
    case = Case(starts, dtype=dtype)
    assert torch.equal(case.decoded(threads=2), case.expected())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "keyed", "width"), [(4, 4, 16), (5, 1, 64), (8, 2, 32), (3, 3, 80), (2, 1, 256)])
def test_heads_of_any_number_and_width(dtype: torch.dtype, heads: int, keyed: int, width: int) -> None:
    case = Case([20, 66], 3, heads=heads, keyed=keyed, width=width, dtype=dtype)
    assert torch.equal(case.decoded(), case.expected())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [1, 5, 64, 70])
def test_windows(dtype: torch.dtype, window: int) -> None:
    case = Case([100, 3], 4, dtype=dtype, window=window)
    assert torch.equal(case.decoded(), case.expected())


@pytest.mark.parametrize("page", [4, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pages(dtype: torch.dtype, page: int) -> None:
    case = Case([70, 0, 33], 2, dtype=dtype, page=page)
    assert torch.equal(case.decoded(), case.expected())


@pytest.mark.parametrize("page", [4, 16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks(dtype: torch.dtype, page: int) -> None:
    for case in (
        Case([70, 0, 33, 130], 2, dtype=dtype, page=page, is_blocked=True),
        Case([127, 15], dtype=dtype, heads=5, keyed=1, width=80, page=page, is_blocked=True),
        Case([100, 3], 4, dtype=dtype, window=70, page=page, is_blocked=True),
        Case([100, 3, 64], 2, dtype=dtype, heads=10, keyed=5, page=page, is_blocked=True, span=3),
        Case([130, 3, 64], heads=4, keyed=4, width=64, dtype=dtype, page=page, is_blocked=True, span=4),
    ):
        assert torch.equal(case.decoded(threads=2), case.expected())


def test_padding_is_not_seen_and_gives_zeros() -> None:
    case = Case([-2, 9], 4)
    out = case.decoded()
    assert torch.equal(out, case.expected()) and bool((out[0, :2] == 0).all())


@pytest.mark.skipif(not HAS_PAIRS, reason="this processor has no instruction for pairs of bf16")
@pytest.mark.parametrize("width", [16, 48, 64])
def test_pairs_of_bf16_give_the_same_bits(width: int) -> None:
    paged = [Case([40, 64, 129], 2, width=width, page=page) for page in (4, 16, 64)]
    paged += [Case([40, 64, 129], 2, width=width, page=page, is_blocked=True) for page in (4, 16, 64)]
    paged += [Case([40, 64, 129], heads=9, keyed=3, width=width, page=16, is_blocked=True, span=2)]
    for case in (Case([70, 5, 0], 5, width=width), *paged, Case([90], 1, width=width, window=7)):
        assert torch.equal(case.decoded(is_paired=True), case.decoded())
