"""Blocks of a GGUF file reach the device that they are for, in our order of rows, and nothing is packed on the way."""

from pathlib import Path

import pytest
import torch

import llamita
from llamita.checkpoint.gguf import load_gguf
from llamita.checkpoint.gguf_save import save_gguf
from llamita.kernels.cpu import repack
from llamita.kernels.cpu.runtime import program
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.block_matrix import BlockMatrix, CpuBlocks, PlainBlocks
from llamita.quant.linear import QuantizedLinear
from llamita.quant.surgery import quantized_layers


@pytest.fixture(scope="module")
def file(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = llamita.load(small_path, kernels="off")
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    save_gguf(small.model, small.tokenizer, path, "q8_0")
    return path


def matrices(model: LlamaForCausalLM) -> list[BlockMatrix]:
    return [layer.matrix for _, layer in quantized_layers(model) if isinstance(layer.matrix, BlockMatrix)]


def test_on_another_device_nothing_is_packed_for_the_cpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("packed on the CPU")

    monkeypatch.setattr(repack, "repack", refuse)
    model, _ = load_gguf(file, device="meta")
    assert {type(matrix) for matrix in matrices(model)} == {PlainBlocks}
    assert {str(matrix.device) for matrix in matrices(model)} == {"meta"}
    assert {str(weight.device) for weight in model.parameters()} == {"meta"}


def test_without_kernels_the_weights_and_the_text_are_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = load_gguf(file)
    monkeypatch.setattr(program, "unsupported_reason", lambda: "there is no compiler")
    plain, _ = load_gguf(file)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)
    assert {type(matrix) for matrix in matrices(packed)} == {CpuBlocks}
    assert {type(matrix) for matrix in matrices(plain)} == {PlainBlocks}
    for (name, one), (_, other) in zip(quantized_layers(packed), quantized_layers(plain), strict=True):
        assert torch.equal(one.matrix.raw(), other.matrix.raw()), name


def test_queries_and_keys_come_in_our_order(file: Path, small_path: Path) -> None:
    blocks, _ = load_gguf(file)
    plain = llamita.load(small_path, kernels="off").model
    for name, layer in quantized_layers(blocks):
        if isinstance(layer, QuantizedLinear) and name.endswith(("q_proj", "k_proj")):
            expected = plain.get_parameter(f"{name}.weight").float()
            assert (layer.matrix.dequantize() - expected).abs().max() <= expected.abs().max() / 127
