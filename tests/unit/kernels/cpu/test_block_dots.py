"""The way that each block format is multiplied: sums of pairs fit, whatever the codes."""

import pytest

from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu import block_dots, isa
from llamita.kernels.cpu import simd as v


@pytest.mark.parametrize("bits", block_dots.BY_PAIRS)
def test_pairs_gather_no_longer_than_sixteen_bits_hold(bits: int) -> None:
    assert 2 * block_dots.BY_PAIRS[bits].period * (2**bits - 1) * 127 < 2**15


@pytest.mark.parametrize("row", isa.INSTRUCTION_SETS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_exact_way(name: str, row: isa.InstructionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "instructions", lambda: row)
    layout = FORMATS[name].layout
    dots = block_dots.dots_of(layout)
    bytes_ = (
        [value + (1 << layout.zero_bits) for value in layout.values] if layout.values else [0, (1 << layout.bits) - 1]
    )
    assert min(bytes_) >= 0 and max(bytes_) < 1 << layout.byte_bits
    is_by_pairs = row.dot_u8s8 in block_dots.dot_bytes.PAIRS
    if dots is block_dots.SIGNED:
        assert (layout.zero_bits, layout.byte_bits) == (7, 8) and row.dot_u8s8 in block_dots.dot_bytes.DOT_S8S8
    else:
        assert dots is (block_dots.BY_PAIRS[layout.byte_bits] if is_by_pairs else block_dots.UNSIGNED)
