"""Every way of storing codes holds the same matrix."""

import pytest
import torch

from llamita.kernels.packed import LAYOUTS
from llamita.quant import stores
from llamita.quant.blocks import FORMATS, BlockFormat
from llamita.quant.stores import CpuStore, GpuStore, PlainStore

KINDS = [PlainStore, CpuStore, GpuStore]
PACKED = [FORMATS[name] for name in LAYOUTS]


@pytest.mark.parametrize("form", PACKED, ids=LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("columns", [256, 512])
def test_stores_hold_the_same_matrix(
    kind: type[PlainStore | CpuStore | GpuStore], form: BlockFormat, columns: int
) -> None:
    raw = form.quantize(torch.randn(45, columns))
    weights = form.dequantize(raw)
    stored = kind.of(form.codes(raw), form.name)
    assert torch.equal(form.raw(stored.codes()), raw)
    assert stored.device.type == "cpu"
    index = torch.tensor([[44, 0, 17], [16, 15, 44]])
    assert torch.equal(stored.rows(index), weights[index])
    bias = torch.randn(45)
    for rows in (1, 16, 17):  # few, and many
        x = torch.randn(rows, 2, columns)
        exact = x @ weights.t() + bias
        out = stored.linear(x.bfloat16(), bias)
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact).norm() / exact.norm() < 0.012
        assert (stored.linear(x, None) - (exact - bias)).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("form", PACKED, ids=LAYOUTS)
def test_packed_stores_take_no_more_room_than_the_file(form: BlockFormat) -> None:
    raw = form.quantize(torch.randn(48, 1024))
    for kind in (CpuStore, GpuStore):
        assert kind.of(form.codes(raw), form.name).nbytes <= raw.nbytes * 1.06


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 70])
def test_part_by_part_is_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PART", 32)
    form = FORMATS["q4_k"]
    raw = form.quantize(torch.randn(rows, 256))
    stored, whole = stores.store_of_raw(raw, form), CpuStore.of(form.codes(raw), form.name)
    assert isinstance(stored, CpuStore)
    assert torch.equal(stored.packed.stream, whole.packed.stream)
    assert torch.equal(form.raw(stored.codes()), raw)
