"""A model that two processes share writes what one process writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.cli.main import main
from tests.distributed.launch import launch
from tests.distributed.writing_cases import OPTIONS, REFUSED, bytes_read


@pytest.fixture(scope="module")
def written(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch("tests.distributed.writing_cases:writing", 2, tmp_path_factory.mktemp("written"), str(small_path))


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_are_those_of_one_process(name: str, written: list[dict[str, Any]]) -> None:
    for found in written:
        one, sharded = found["texts"][name]
        assert sharded == one
        assert all(ids for ids, *_ in one)


def test_logits_are_those_of_one_process_and_each_keeps_half(written: list[dict[str, Any]]) -> None:
    """Bit for bit on the machines that were measured; torch promises no more than the rounding of its products."""
    for found in written:
        assert found["logits"] <= 1e-6
        assert found["kept"] < 0.51


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_each_process_reads_its_own_half(written: list[dict[str, Any]], small_path: Path) -> None:
    for found in written:
        assert 0.49 < found["read"] < 0.52
    assert bytes_read(str(small_path), None) > 0.98


def test_caches_have_the_heads_of_their_process(written: list[dict[str, Any]]) -> None:
    """Of a model whose vocabulary and hidden size are odd."""
    for found in written:
        assert found["odd"].keys() == {None, "static", "quantized"}
        assert all(torch.equal(one, sharded) for one, sharded in found["odd"].values())
        assert found["static"].startswith("this StaticCache has 2 heads and the model's pass 1: make it by")


def test_blocks_of_a_gguf_file_are_shared_once_they_are_dequantized(written: list[dict[str, Any]]) -> None:
    for found in written:
        refused, one, sharded = found["gguf"]
        assert refused.endswith("which processes do not share: give a --dtype, such as bfloat16, to dequantize them")
        assert sharded == one


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_a_whole_model_is_refused(name: str, written: list[dict[str, Any]]) -> None:
    assert written[0]["refused"][name].startswith(f"{name} is for a model in one process")


def test_the_command_line_writes_the_same(small_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first process reads what is piped in and prints; a seed that is not given is drawn once for both."""
    words = f"generate -m {small_path} -n 20 -t 0.8 --kernels off --device cpu --json".split()
    first, second = launch("tests.distributed.writing_cases:commanded", 2, tmp_path, *words, "--tp", "2")
    assert first["code"] == 0, first
    assert second == {"code": 0, "out": "", "err": ""}
    (line,) = first["out"].splitlines()
    assert main([*words, "-p", "Once upon", "--seed", str(json.loads(line)["seed"])]) == 0
    assert capsys.readouterr().out.strip() == line


def test_several_processes_are_asked_for_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--tp", "2", "Hello"]) == 2
    assert "2 processes are asked for, and this is a single one" in capsys.readouterr().err
