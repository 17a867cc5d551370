"""Attention of many new tokens over a cache, held to reference.attention and to decode_attention bit for bit."""

from functools import partial

import pytest
import torch

from tests.unit.kernels.cpu.attention_case import HAS_PAIRS, Case
from tests.unit.kernels.cpu.launch import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("starts", "tokens"), [([0], 1), ([0], 17), ([0], 70), ([63, 5], 33), ([130], 3)], ids=str)
def test_tokens_behind_others(dtype: torch.dtype, starts: list[int], tokens: int) -> None:
    case = Case(starts, tokens, dtype=dtype, width=32)
    expected = case.expected()
    assert torch.equal(case.prefilled(threads=2), expected)
    assert torch.equal(case.decoded(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [1, 9, 64])
def test_windows(dtype: torch.dtype, window: int) -> None:
    case = Case([80, 0], 40, dtype=dtype, width=16, window=window)
    assert torch.equal(case.prefilled(), case.decoded())


@pytest.mark.parametrize("page", [4, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pages(dtype: torch.dtype, page: int) -> None:
    case = Case([70, 0, 33], 20, dtype=dtype, width=16, page=page)
    assert torch.equal(case.prefilled(), case.decoded())


@pytest.mark.parametrize("page", [4, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks(dtype: torch.dtype, page: int) -> None:
    case = Case([70, 0, 33], 20, dtype=dtype, width=80, page=page, is_blocked=True)
    assert torch.equal(case.prefilled(), case.decoded())


def test_padding_is_not_seen_and_gives_zeros() -> None:
    case = Case([-20, 9, -40], 41, width=16)
    out = case.prefilled()
    assert torch.equal(out, case.expected()) and bool((out[0, :20] == 0).all())


@pytest.mark.skipif(not HAS_PAIRS, reason="this processor has no instruction for pairs of bf16")
@pytest.mark.parametrize(("heads", "keyed", "width"), [(4, 4, 16), (5, 1, 64), (3, 3, 80), (2, 1, 256)])
def test_pairs_of_bf16_give_the_same_bits(heads: int, keyed: int, width: int) -> None:
    make = partial(Case, heads=heads, keyed=keyed, width=width)
    for case in (
        make([70, 5], 50),
        make([0, 33], 34, page=16),
        make([0, 33], 34, page=16, is_blocked=True),
        make([90], 33, window=7),
    ):
        assert torch.equal(case.prefilled(is_paired=True), case.prefilled())
