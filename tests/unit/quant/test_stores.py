"""Every way of storing codes holds the same matrix."""

import re
from pathlib import Path

import pytest
import torch

import llamita
from llamita import LlamaConfig, LlamaForCausalLM
from llamita.errors import UsageError
from llamita.kernels.block_format import BlockFormat
from llamita.kernels.blocks import FORMATS
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cpu.runtime import program
from llamita.kernels.cuda import planes
from llamita.quant import stores
from llamita.quant.stores import CpuStore, GpuStore, PlainStore

WAYS = [
    (kind, form)
    for kind in (PlainStore, CpuStore, GpuStore)
    for form in FORMATS.values()
    if kind is not GpuStore or planes.has_kernels(form.layout)
]


@pytest.mark.parametrize(("kind", "form"), WAYS, ids=lambda part: getattr(part, "__name__", None) or part.name)
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


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_packed_stores_take_no_more_room_than_the_file(form: BlockFormat) -> None:
    raw = form.quantize(torch.randn(48, 1024))
    for kind in (kind for kind, its in WAYS if its is form and kind is not PlainStore):
        assert kind.of(form.codes(raw), form.name).nbytes <= raw.nbytes * 1.06


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_gpus_store_plainly_what_their_kernels_do_not_know(form: BlockFormat) -> None:
    known = GpuStore if form.layout.values is None else PlainStore
    assert stores._kind(torch.device("cuda"), form.name) is known


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_bytes_of_a_file_in_any_order(form: BlockFormat, has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_kernels:
        monkeypatch.setattr(program, "why_not", lambda: "there is no compiler")
    raw, order = form.quantize(torch.randn(45, 512)), torch.randperm(45)
    weights, x = form.dequantize(raw), torch.randn(3, 512)
    for chosen, stored in (
        (slice(None), stores.store_of_raw(raw, form)),
        (order, stores.store_of_raw(raw, form, order)),
        (slice(None), stores.store(form.codes(raw), form.name)),
    ):
        assert type(stored) is (CpuStore if has_kernels else PlainStore)
        assert torch.equal(form.raw(stored.codes()), raw[chosen])
        assert torch.equal(stored.rows(torch.tensor([44, 3])), weights[chosen][[44, 3]])
        exact = x @ weights[chosen].t()
        assert (stored.linear(x, None) - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("raw", [torch.zeros(3, 35, dtype=torch.uint8), torch.zeros(3, 34), torch.zeros(34).byte()])
def test_bytes_of_another_format_are_refused(raw: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="q8_0 needs rows of a multiple of 34 bytes"):
        stores.store_of_raw(raw, FORMATS["q8_0"])


def test_the_model_asks_quantized_modules_by_a_declared_name() -> None:
    """No attribute is guessed at: a module that happens to have a `matrix` is none of them."""
    folder = Path(llamita.__file__).parent
    guessing = re.compile(r"(hasattr|getattr)\([^()]*, \"(matrix|store|packed|planes)\"")
    files = [path for room in ("model", "quant", "plans/cuda") for path in (folder / room).rglob("*.py")]
    assert [str(path) for path in files if guessing.search(path.read_text(encoding="utf-8"))] == []
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    count = model.num_parameters()
    model.lm_head.matrix = torch.zeros(3, 3)
    assert model.num_parameters() == count
    assert model.resize_token_embeddings(33).num_embeddings == 33


@pytest.mark.parametrize(("kind", "view"), [(PlainStore, type(None)), (CpuStore, Packed), (GpuStore, planes.Planes)])
def test_every_store_says_what_kernels_read(kind: type[PlainStore | CpuStore | GpuStore], view: type) -> None:
    form = FORMATS["q8_0"]
    assert type(kind.of(form.codes(form.quantize(torch.randn(32, 64))), form.name).kernel_view()) is view
