"""`llamita show`: true facts, without weights."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from llamita.adapters.config import LoraConfig
from llamita.adapters.files import save_adapter
from llamita.adapters.lora import add_lora
from llamita.cli import show
from llamita.files.checkpoint import TensorFiles
from llamita.kernels.cpu import isa
from llamita.kernels.cpu.runtime import code_cache
from llamita.model.llama import LlamaForCausalLM
from tests.small import save_small_model
from tests.unit.cli.conftest import Run


def test_the_card(run: Run, small_path: Path) -> None:
    outcome = run("show")
    assert (outcome.code, outcome.err) == (0, "")
    for fact in (
        "202 K parameters",
        "context 128",
        "2, each shared by 2 query heads",
        "chat template  yes",
        "greedily",
    ):
        assert fact in outcome.out, outcome.out
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())
    assert run("show", str(small_path)).out == run("show", "-m", str(small_path)).out == outcome.out


def test_the_facts(run: Run, small_path: Path) -> None:
    card = json.loads(run("show", "--json").out)
    model = LlamaForCausalLM.from_pretrained(small_path)
    parameters = card["parameters"]
    assert parameters["total"] == model.num_parameters() == sum(parameters.values()) - parameters["total"]
    assert parameters["head"] == 0  # tied, and counted once
    cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    stored = sum(k.nbytes + v.nbytes for k, v in cache)
    assert card["cache"]["bytes_per_token"] * 3 == stored
    assert card["weights"]["bytes"] == (small_path / "model.safetensors").stat().st_size
    assert card["tokenizer"]["eos"] == ["<|end_of_text|> (257)", "<|eot_id|> (258)"]


def test_no_weight_is_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TensorFiles, "load")
    assert run("show").code == 0


def test_weights_that_do_not_fit_are_said(run: Run, tmp_path: Path) -> None:
    save_small_model(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"num_hidden_layers": 5, "intermediate_size": 200}
    path.write_text(json.dumps(config), encoding="utf-8")
    err = run("show", str(tmp_path)).err
    assert "9 weights are missing, such as model.layers.4." in err
    assert "12 weights have another shape" in err


def test_what_is_noticed_is_a_line(run: Run, small_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(small_path, tmp_path / "model") / "config.json"
    bases = {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    path.write_text(json.dumps(json.loads(path.read_text()) | bases), "utf-8")
    warnings.simplefilter("always")
    outcome = run("show", str(path.parent))
    said = "llamita: rope_theta is 500.0, and that of rope_parameters 10000.0: the latter is used\n"
    assert (outcome.code, outcome.err) == (0, said)


def test_sizes_as_people_say_them() -> None:
    assert [show.rounded(n) for n in (999, 1500, 3_476_224, 8_030_261_248)] == ["999", "1.5 K", "3.48 M", "8.03 B"]
    assert [show.size(n) for n in (999, 2560, 6_957_512, 16_060_556_376)] == ["999 B", "2.56 kB", "6.96 MB", "16.1 GB"]


@pytest.mark.skipif(not isa.host()[0].startswith("x86_64"), reason="names a processor of that kind")
def test_this_machine_and_the_lesser_one_that_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(code_cache, "_folder", lambda: tmp_path)
    (tmp_path / "gemm.one").touch()
    monkeypatch.setenv("LLAMITA_CPU", "")
    best = isa.runnable()[0]
    out = run("show", "--machine").out
    for fact in (
        f"{best.name}, the best that this machine has",
        best.dot_u8s8,
        best.lookup,
        "1 in ",
        str(tmp_path.name),
    ):
        assert fact in out.replace("\n", ""), out
    monkeypatch.setenv("LLAMITA_CPU", "x86-64-v2")
    card = json.loads(run("show", "--machine", "--json").out)
    assert (card["instruction_set"], card["named_by"]) == ("SSSE3", "LLAMITA_CPU=x86-64-v2")
    assert card["operations"]["dot_u8s8"] == "pmaddubsw.128" and card["operations"]["fma"] == "the C library"
    assert card["runs"] == {row.cpu: row.name for row in isa.runnable()}
    assert "SSSE3, as LLAMITA_CPU=x86-64-v2 says" in run("show", "--machine").out


def test_a_machine_is_no_model_and_a_wrong_name_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run("show", "--machine", "-m", "some/model")
    assert outcome.code == 2 and "--machine describes this machine, not some/model" in outcome.err
    monkeypatch.setenv("LLAMITA_CPU", "nonsense")
    outcome = run("show", "--machine")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "LLAMITA_CPU is 'nonsense'" in outcome.err


def test_an_adapter_has_its_own_lines(run: Run, small_path: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(small_path)
    add_lora(model, LoraConfig(r=3, target_modules=["q_proj", "k_proj"]))
    save_adapter(model, tmp_path / "adapter")
    card = json.loads(run("show", "--adapter", "adapter", "--json").out)["adapter"]
    assert (card["kind"], card["rank"], card["targets"]) == ("LoRA", 3, "q_proj, k_proj")
    assert card["parameters"] == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert "q_proj, k_proj" in run("show", "--adapter", "adapter").out
    assert "nowhere has no adapter_config.json" in run("show", "--adapter", "nowhere").err
