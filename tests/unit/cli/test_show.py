"""`llamita show`: true facts, without weights."""

import json
from pathlib import Path

import pytest
import torch

from llamita.cli import show
from llamita.files.checkpoint import TensorFiles
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


def test_sizes_as_people_say_them() -> None:
    assert [show.rounded(n) for n in (999, 1500, 3_476_224, 8_030_261_248)] == ["999", "1.5 K", "3.48 M", "8.03 B"]
    assert [show.size(n) for n in (999, 2560, 6_957_512, 16_060_556_376)] == ["999 B", "2.56 kB", "6.96 MB", "16.1 GB"]
