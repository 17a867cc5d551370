"""Every layout holds the same matrix, and says what kernels read."""

import copy
import pickle
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
from llamita.quant.block_matrix import BlockMatrix, CpuBlocks, GpuBlocks, PlainBlocks, from_blocks, from_raw, layout_on
from llamita.quant.int8_matrix import Int8Rows
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.surgery import quantize, quantize_weight

WAYS = [
    (kind, form)
    for kind in (PlainBlocks, CpuBlocks, GpuBlocks)
    for form in FORMATS.values()
    if kind is not GpuBlocks or planes.has_kernels(form.layout)
]


@pytest.mark.parametrize(("kind", "form"), WAYS, ids=lambda part: getattr(part, "__name__", None) or part.name)
@pytest.mark.parametrize("columns", [256, 512])
def test_layouts_hold_the_same_matrix(kind: type[BlockMatrix], form: BlockFormat, columns: int) -> None:
    raw = form.quantize(torch.randn(45, columns))
    weights = form.dequantize(raw)
    stored = kind.of(form.codes(raw), form.name)
    assert torch.equal(form.raw(stored.blocks()), raw)
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


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "int8"])
def test_parts_are_rows_of_the_matrix_and_join_to_it(name: str) -> None:
    whole = quantize_weight(name, torch.randn(45, 256))
    parts = [whole.part(0, 23), whole.part(23, 45)]
    weights = whole.dequantize()
    assert torch.equal(parts[0].dequantize(), weights[:23])
    assert torch.equal(parts[1].dequantize(), weights[23:])
    assert all(type(part) is type(whole) for part in parts)
    x = torch.randn(3, 256)
    assert torch.equal(torch.cat([part.linear(x) for part in parts], dim=1), whole.linear(x))
    assert whole.linear(x[:0]).shape == (0, 45)
    joined = parts[0].joined([part.stored_tensors() for part in parts])
    pairs = zip(joined.stored_tensors(), whole.stored_tensors(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_packed_layouts_take_no_more_memory_than_the_file(form: BlockFormat) -> None:
    raw = form.quantize(torch.randn(48, 1024))
    for kind in (kind for kind, its in WAYS if its is form and kind is not PlainBlocks):
        assert kind.of(form.codes(raw), form.name).nbytes <= raw.nbytes * 1.06


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_gpus_store_plainly_what_their_kernels_do_not_know(form: BlockFormat) -> None:
    known = GpuBlocks if form.layout.values is None else PlainBlocks
    assert layout_on(torch.device("cuda"), form.name) is known


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_bytes_of_a_file_in_any_order(form: BlockFormat, has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_kernels:
        monkeypatch.setattr(program, "unsupported_reason", lambda: "there is no compiler")
    raw, order = form.quantize(torch.randn(45, 512)), torch.randperm(45)
    weights, x = form.dequantize(raw), torch.randn(3, 512)
    for chosen, stored in (
        (slice(None), from_raw(form.name, raw)),
        (order, from_raw(form.name, raw, order)),
        (slice(None), from_blocks(form.codes(raw), form.name)),
    ):
        assert type(stored) is (CpuBlocks if has_kernels else PlainBlocks)
        assert torch.equal(form.raw(stored.blocks()), raw[chosen])
        assert torch.equal(stored.rows(torch.tensor([44, 3])), weights[chosen][[44, 3]])
        exact = x @ weights[chosen].t()
        assert (stored.linear(x, None) - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("raw", [torch.zeros(3, 35, dtype=torch.uint8), torch.zeros(3, 34), torch.zeros(34).byte()])
def test_bytes_of_another_format_are_refused(raw: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="q8_0 needs rows of a multiple of 34 bytes"):
        from_raw("q8_0", raw)


def test_the_model_asks_quantized_modules_by_a_declared_name() -> None:
    """No attribute is guessed at: a module that happens to have a `matrix` is none of them."""
    folder = Path(llamita.__file__).parent
    guessing = re.compile(r"(hasattr|getattr)\([^()]*, \"(matrix|store|packed|planes)\"")
    files = [path for room in ("model", "quant", "plans") for path in (folder / room).rglob("*.py")]
    assert [str(path) for path in files if guessing.search(path.read_text(encoding="utf-8"))] == []
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    count = model.num_parameters()
    model.lm_head.matrix = torch.zeros(3, 3)
    assert model.num_parameters() == count
    assert model.resize_token_embeddings(33).num_embeddings == 33


@pytest.mark.parametrize(("kind", "view"), [(PlainBlocks, type(None)), (CpuBlocks, Packed), (GpuBlocks, planes.Planes)])
def test_every_layout_says_what_kernels_read(kind: type[BlockMatrix], view: type) -> None:
    form = FORMATS["q8_0"]
    assert type(kind.of(form.codes(form.quantize(torch.randn(32, 64))), form.name).kernel_view()) is view


@pytest.mark.parametrize("name", ["q4_k", "int8"])
def test_one_class_is_all_that_layers_know(name: str) -> None:
    """The parts that a caller may ask for are declared once, and no matrix leaves one out."""
    declared = {part for part in vars(QuantizedMatrix) if not part.startswith("_")}
    assert declared == {
        "device",
        "nbytes",
        "kernel_view",
        "linear",
        "rows",
        "dequantize",
        "raw",
        "moved",
        "stored_tensors",
        "part",
        "joined",
    }
    matrix = quantize_weight(name, torch.randn(32, 256))
    assert isinstance(matrix, QuantizedMatrix) and matrix.format_name == name and matrix.shape == (32, 256)
    assert not QuantizedMatrix.__abstractmethods__ - {"_copied"} - declared


@pytest.mark.parametrize("name", [*FORMATS, "int8"])
def test_a_moved_matrix_is_another_one_and_the_same_for_all(name: str) -> None:
    weight = torch.randn(32, 256)
    matrix = quantize_weight(name, weight)
    before = matrix.dequantize()
    assert matrix.moved(lambda tensor: tensor.bfloat16() if tensor.is_floating_point() else tensor) is matrix
    there = matrix.moved(lambda tensor: tensor.to("meta"))
    assert there is matrix.moved(lambda tensor: tensor.to("meta"))
    assert (there.device.type, there.shape, there.format_name) == ("meta", (32, 256), name)
    assert type(there) is (Int8Rows if name == "int8" else PlainBlocks)
    assert matrix.device.type == "cpu" and torch.equal(matrix.dequantize(), before)
    for twin in (copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        assert torch.equal(twin.dequantize(), before)
        assert twin.moved(lambda tensor: tensor.to("meta")) is not there


def test_tied_layers_share_one_matrix_on_every_device() -> None:
    config = LlamaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config.replace(intermediate_size=32, tie_word_embeddings=True))
    quantize(model, "q8_0")
    model.to("meta")
    assert model.lm_head.matrix is model.model.embed_tokens.matrix
    assert model.lm_head.matrix.device.type == "meta"
