"""Blocks of a file become the stream that their codes would, byte for byte."""

import pytest
import torch
from torch import Tensor

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.packed_layout import pack, unpack
from llamita.kernels.cpu.repack import repack


def any_bytes(kind: str, rows: int, blocks: int) -> Tensor:
    """Blocks of any bytes, every kind of number among their scales, at an address that is a multiple of nothing."""
    width = blocks * FORMATS[kind].nbytes
    return torch.randint(256, (rows * width + 1,), dtype=torch.uint8)[1:].view(rows, width)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 70])
def test_any_size_of_any_kind_is_packed_as_its_codes_are(kind: str, rows: int, blocks: int) -> None:
    raw = any_bytes(kind, rows, blocks)
    codes = FORMATS[kind].codes(raw)
    packed, expected = repack(raw, kind), pack(codes, kind)
    assert torch.equal(packed.stream, expected.stream)
    assert (packed.format_name, packed.rows, packed.columns) == (kind, *codes.shape)
    assert torch.equal(FORMATS[kind].raw(unpack(packed)), raw)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 48, 70])
def test_rows_in_another_order(kind: str, rows: int) -> None:
    raw, order = any_bytes(kind, rows, 2), torch.randperm(rows)
    assert torch.equal(repack(raw, kind, order).stream, pack(FORMATS[kind].codes(raw[order]), kind).stream)


def test_orders_of_any_stride_and_twice_the_same_row() -> None:
    raw, order = any_bytes("q4_0", 20, 1), torch.randint(20, (20, 2))[:, 1]
    assert torch.equal(repack(raw, "q4_0", order).stream, pack(FORMATS["q4_0"].codes(raw[order]), "q4_0").stream)


@pytest.mark.parametrize("order", [[0, 1, 3], [0, 1, -1], [0, 1]])
def test_rows_that_are_not_there_are_never_read(order: list[int]) -> None:
    with pytest.raises(AssertionError):
        repack(any_bytes("q8_0", 3, 1), "q8_0", torch.tensor(order))


def test_many_chunks_and_a_view_of_a_larger_tensor() -> None:
    raw = any_bytes("q8_0", 16 * 400 + 3, 20)[:, : 10 * FORMATS["q8_0"].nbytes]  # the rows are not one behind the other
    assert torch.equal(repack(raw, "q8_0").stream, pack(FORMATS["q8_0"].codes(raw.contiguous()), "q8_0").stream)


@pytest.mark.parametrize("shape", [(0, 68), (3, 0)])
def test_nothing_becomes_nothing(shape: tuple[int, int]) -> None:
    packed = repack(torch.empty(shape, dtype=torch.uint8), "q8_0")
    assert packed.stream.numel() == 0 and packed.rows == shape[0] and packed.columns == shape[1] // 34 * 32
