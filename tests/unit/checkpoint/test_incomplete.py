"""A checkpoint that lacks weights is refused wherever a text is to come of it; training may start on one."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import llamita
from llamita import LlamaForCausalLM, LlamaForSequenceClassification
from llamita.cli.main import main
from llamita.errors import BrokenFileError, UnsupportedError

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def without(names: Collection[str], source: Path, folder: Path) -> Path:
    """A checkpoint once more, without some of its weights."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name not in names}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([NORM], f"1 of 38 weights are not in it: {NORM}; download it again"),
        ([NORM, DOWN], f"2 of 38 weights are not in it: {DOWN}, {NORM}; download it again"),
        ([EMBEDDING], f"1 of 38 weights are not in it: {EMBEDDING}; download it again"),
        ([f"model.layers.{i}.input_layernorm.weight" for i in range(4)], "and 1 more; download it again"),
    ],
)
def test_loading_for_text_names_what_is_missing(
    names: list[str], says: str, small_path: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = without(names, small_path, tmp_path / "part")
    with pytest.raises(BrokenFileError) as caught:
        llamita.load(folder)
    assert str(caught.value).startswith(f"{folder} is incomplete: ")
    assert str(caught.value).endswith(says)
    assert not recwarn.list


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "part", "x.gguf"],
        ["convert", "part", "copy"],
        ["quantize", "part", "-o", "x.gguf", "--to", "q8_0"],
        ["quantize", "part", "--to", "q8_0"],
        ["generate", "hello", "-m", "part"],
        ["chat", "-m", "part"],
        ["verify", "part"],
    ],
)
def test_every_verb_refuses_it(
    words: list[str],
    small_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without([NORM, DOWN], small_path, tmp_path / "part")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    *said, last = err.splitlines()  # verify says first how long it will take
    assert last.startswith("llamita: part is incomplete: 2 of 38 weights") and len(said) <= (words[0] == "verify")
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_weights_of_another_shape_are_told_with_both_shapes(small_path: Path, tmp_path: Path) -> None:
    folder = without([], small_path, tmp_path / "part")
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"intermediate_size": 176', '"intermediate_size": 172'), "utf-8")
    with pytest.raises(
        BrokenFileError, match=r"does not fit its config.json: .* is \(172, 64\) there, and \(176, 64\)"
    ):
        llamita.load(folder)


def changed(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A checkpoint once more, with other tensors."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_names_behind_those_of_a_wrapper_are_told_apart(prefix: str, small_path: Path, tmp_path: Path) -> None:
    folder = changed(
        small_path, tmp_path / "wrapped", lambda old: {f"{prefix}{name}": one for name, one in old.items()}
    )
    with pytest.raises(BrokenFileError, match=f"names that begin with '{prefix}', of a model in a wrapper"):
        llamita.load(folder)


@pytest.mark.parametrize("load", [llamita.load, LlamaForCausalLM.from_pretrained])
def test_whole_numbers_are_no_weights(load: Callable[[Path], Any], small_path: Path, tmp_path: Path) -> None:
    folder = changed(small_path, tmp_path / "whole", lambda old: {**old, DOWN: old[DOWN].to(torch.int8)})
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.down_proj\.weight holds int8, so it is quantized"):
        load(folder)


def test_weights_with_scales_of_their_own_are_refused(small_path: Path, tmp_path: Path) -> None:
    folder = changed(small_path, tmp_path / "scaled", lambda old: {**old, f"{DOWN}_scale": torch.ones(1)})
    with pytest.raises(
        UnsupportedError, match=r"has model\.layers\.1\.mlp\.down_proj\.weight_scale, so it is quantized"
    ):
        llamita.load(folder)


def test_training_may_start_on_it_as_in_transformers(small_path: Path, tmp_path: Path) -> None:
    folder = without([NORM], small_path, tmp_path / "part")
    with pytest.warns(UserWarning, match=r"1 weights are not in the checkpoint and start random: model\.norm\.weight"):
        LlamaForCausalLM.from_pretrained(folder)
    with pytest.warns(UserWarning, match=r"start random: .*score\.weight"):
        LlamaForSequenceClassification.from_pretrained(small_path)
