"""`llamita eval`: what it prints, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.files import save_adapter
from llamita.adapters.lora import add_lora, lora_layers
from llamita.checkpoint.load import load_pretrained
from tests.unit.cli.conftest import Run


def test_a_text_and_tasks_as_a_table(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The fox ran.", encoding="utf-8")
    outcome = run("eval", "--text", "text.txt", "--tasks", "add,facts,perplexity", "--limit", "2", "--kernels", "off")
    assert outcome.code == 0, outcome.err
    text, header, add, facts = outcome.out.splitlines()
    assert text.startswith("text.txt: perplexity ")
    assert text.endswith(" 12 bytes")
    assert header.split() == ["task", "right", "±", "error", "cases", "rule"]
    assert add.split()[::3] == ["add", "2"]
    assert facts.split()[4:6] == ["choice,", facts.split()[5]]


def test_scores_as_json(run: Run) -> None:
    outcome = run("eval", "--tasks", "facts", "--limit", "3", "--json", "--kernels", "off")
    found = json.loads(outcome.out)
    assert found["model"]
    score = found["tasks"]["facts"]
    assert (score["rule"], score["cases"]) == ("choice", 3)
    assert score["accuracy"] == score["right"] / 3
    assert score["accuracy_per_byte"] == score["right_per_byte"] / 3
    assert "text" not in found


def test_a_text_alone_is_only_perplexity(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The fox ran.", encoding="utf-8")
    found = json.loads(run("eval", "--text", "text.txt", "--json", "--length", "4", "--stride", "2").out)
    assert found.keys() == {"model", "text"}
    assert found["text"]["bytes"] == 12


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("--tasks", "sums"), 2, "there is no task 'sums'"),
        (("--limit", "0"), 2, "--limit"),
        (("--length", "4000", "--tasks", "perplexity"), 2, "--length is 4000: the model reads at most"),
        (("--text", "nowhere.txt"), 3, "cannot read nowhere.txt"),
        (("--shots", "3"), 2, "--shots belongs to --lm-eval: give both"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, words: tuple[str, ...], code: int, error: str) -> None:
    outcome = run("eval", *words)
    assert outcome.code == code
    assert error in outcome.err
    assert outcome.err.count("\n") == 1


def test_without_lm_eval_it_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "llamita.bridge.lm_eval", raising=False)
    outcome = run("eval", "--lm-eval", "hellaswag")
    assert outcome.code == 6
    assert "lm-eval is not installed: pip install 'llamita[eval]'" in outcome.err


def test_conversations_are_left_out_without_a_chat_template(
    run: Run, tmp_path: Path, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamita.cli.eval.files", {"llamita": tmp_path}.__getitem__)  # a shorter text than cria's
    (tmp_path / "cria").mkdir()
    (tmp_path / "cria" / "held_out.txt").write_text("The fox ran.", encoding="utf-8")
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in small_path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}), encoding="utf-8")
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.replace("_header_id|>", "_none|>"), encoding="utf-8")
    outcome = run("eval", "plain", "--limit", "1", "--json", "--kernels", "off")
    assert "left out, as plain has no chat template: add, compare" in outcome.err
    assert "a case has" in outcome.err  # of the one task that is left, longer than the small model's 128 tokens
    assert outcome.code == 2


def test_an_adapter_is_measured_with_its_base(run: Run, tmp_path: Path, small_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The fox ran.", encoding="utf-8")
    model = load_pretrained(small_path, device="cpu").model
    add_lora(model, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(1)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.pairs["default"].B, std=30.0)  # pyright: ignore[reportArgumentType]
    save_adapter(model, tmp_path / "adapter")
    plain, tuned = (
        json.loads(run("eval", "--text", "text.txt", "--json", *more).out)["text"]["perplexity"]
        for more in ((), ("--adapter", "adapter"))
    )
    ids = torch.tensor([load_pretrained(small_path, device="cpu").tokenizer.encode("The fox ran.")])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.exp().item()
    assert tuned == pytest.approx(expected, rel=1e-3)
    assert tuned != pytest.approx(plain, rel=1e-3)
