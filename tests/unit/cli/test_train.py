"""`llamita train`: the command, its folder, and its errors."""

import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import train_progress, train_settings
from llamita.train import memory, rank_memory
from llamita.train.metrics import Metrics
from llamita.train.rank_memory import RankEstimate
from llamita.train.recipe import Recipe
from tests.unit.cli.conftest import Run

SHORT = ("--steps", "3", "--length", "32", "--batch-tokens", "64", "--precision", "fp32", "--shape", "pico")


@pytest.fixture(autouse=True)
def text(run: Run, small_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A text to train on, and the small model's tokenizer for new models."""
    monkeypatch.delenv("LLAMITA_MODEL")
    monkeypatch.setenv("LLAMITA_TOKENIZER", str(small_path))
    path = tmp_path / "book.txt"
    path.write_text("\f".join(f"the {n} llamas eat {n * n} leaves" for n in range(40)), encoding="utf-8")
    return path


def test_trains_reports_and_writes_a_model_that_generates(run: Run, tmp_path: Path) -> None:
    outcome = run("train", "book.txt", *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("the ") or outcome.out.startswith("all ")
    assert "pretrain 0.1 M parameters for 3 steps of 2 x 32 tokens" in outcome.err
    assert "step 3 of 3: loss " in outcome.err
    assert "llamita generate -m trained" in outcome.err
    assert "<svg" in (tmp_path / "trained" / "report.html").read_text(encoding="utf-8")
    assert run("generate", "the", "-m", "trained", "-n", "3", "--kernels", "off", "-q").code == 0
    quiet = run("train", "book.txt", *SHORT, "-q")
    assert quiet == (0, "trained-2\n", "")


def test_a_recipe_file_is_overruled_by_options(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (f"{name[2:].replace('-', '_')} = {json.dumps(v if v[0].isalpha() else int(v))}"
             for name, v in zip(SHORT[::2], SHORT[1::2], strict=True) if name != "--precision")  # fmt: skip
    (tmp_path / "r.toml").write_text("\n".join([*lines, 'precision = "fp32"', 'data = ["book.txt"]']), encoding="utf-8")
    monkeypatch.setenv("LLAMITA_MODEL", "nowhere")  # which --shape overrules
    outcome = run("train", "--recipe", "r.toml", "--steps", "2", "--shape", "pico", "--optimizer", "adamw", "-o", "out")
    assert outcome.code == 0, outcome.err
    resolved = (tmp_path / "out" / "training" / "recipe.toml").read_text(encoding="utf-8")
    assert "steps = 2\n" in resolved
    assert 'shape = "pico"\n' in resolved
    assert 'optimizer = "adamw"\n' in resolved


def test_a_signal_saves_and_resume_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(metrics: Metrics, steps: int) -> None:
        if metrics.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train_progress, "note", interrupt)
        outcome = run("train", "book.txt", *SHORT, "-o", "out")
    assert outcome.code == 130
    assert "stopped and saved at step 2: llamita train --resume -o out goes on" in outcome.err
    assert "holds a run already" in run("train", "book.txt", *SHORT, "-o", "out").err
    assert "steps is 1, but the run has taken 2" in run("train", "--resume", "-o", "out", "--steps", "1").err
    assert "seed of the run in out is 0 and cannot become 4" in run("train", "--resume", "-o", "out", "--seed", "4").err
    monkeypatch.setenv("LLAMITA_SEED", "5")  # for new runs
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "out")
        outcome = run("train", "--resume", "-o", str(tmp_path / "out"))
    monkeypatch.delenv("LLAMITA_SEED")
    assert outcome.code == 0, outcome.err
    assert "from step 2 for 3 steps" in outcome.err
    assert [json.loads(line)["step"] for line in Path("out/training/metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]
    run("train", "book.txt", *SHORT, "-o", "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_an_adapter_is_trained_and_used(run: Run, small_path: Path) -> None:
    words = ("book.txt", "--model", str(small_path), "--method", "lora", "--lr", "0.05", "--rslora")
    outcome = run("train", *words, *SHORT[:-2], "-o", "adapter")
    assert outcome.code == 0, outcome.err
    assert f"the adapter: llamita generate -m {small_path} --adapter adapter" in outcome.err
    assert "rslora = true\n" in Path("adapter/training/recipe.toml").read_text(encoding="utf-8")
    written = [run("generate", "the", "-m", str(small_path), "-n", "8", "-q", *more).out
               for more in ((), ("--adapter", "adapter"))]  # fmt: skip
    assert written[0] != written[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nothing.txt",), 3, "nothing.txt: it does not exist"),
        (
            ("book.txt", "--optimizer", "sgd"),
            2,
            "optimizer is 'sgd': use one of adamw, adamw8bit, muon, lion, adafactor",
        ),
        (("book.txt", "--steps", "3", "--minutes", "1"), 2, "--minutes does nothing with --steps"),
        (("book.txt", "--model", "cria", "--shape", "nano"), 2, "--shape does nothing with --model"),
        (("book.txt", "--vocab-size", "300"), 2, "--vocab-size does nothing without --tokenizer new: give that too"),
        (
            ("book.txt", "--rank", "3"),
            2,
            "--rank does nothing without --method lora: give that too, or leave --rank out",
        ),
        (("book.txt", "--task", "pretrain", "--label-smoothing", "0.1"), 2, "--label-smoothing does nothing without"),
        (("book.txt", "--threads", "0"), 2, "threads is 0: it must be from 1"),
        (("book.txt", "--task", "sft", "--steps", "1"), 2, "has no prompt, which sft needs"),
        (("book.txt", "--method", "lora"), 2, "method is lora, which adapts a trained model: name one with --model"),
        (("--resume", "-o", "nowhere"), 2, "nowhere has no run to resume"),
        (("book.txt", "-o", "book.txt"), 2, "book.txt is a file: give a folder"),
        (("book.txt", "--lr", "fast"), 2, "--lr is 'fast', which is no number"),
        (("book.txt", "--device", "tpu"), 2, "device 'tpu' is not available here"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_folder(
    run: Run, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    outcome = run("train", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt"]


def test_a_step_of_a_run_is_written_to_a_folder_of_its_own(run: Run, tmp_path: Path) -> None:
    assert run("train", "book.txt", *SHORT, "-o", "out", "-q").code == 0
    outcome = run("train", "rewind", "--step", "2", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "wrote the model and the checkpoint of step 2 to out-step-2: llamita train --resume -o" in outcome.err
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert (tmp_path / "out-step-2" / "model.safetensors").read_bytes() != weights
    assert run("train", "--resume", "-o", "out-step-2", "-q").code == 0
    assert (tmp_path / "out-step-2" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("rewind", "-o", "out"), "rewind needs a step: llamita train rewind --step N -o FOLDER"),
        (("rewind", "--step", "2", "-o", "nowhere"), "there is no run in nowhere: give its folder with -o"),
        (("rewind", "book.txt", "--step", "2"), "rewind takes no files, not book.txt"),
        (("rewind", "--step", "2", "--lr", "1"), "rewind does nothing with --lr: the run has its recipe"),
        (("book.txt", "--step", "2"), "--step belongs to llamita train rewind"),
    ],
)
def test_rewinding_what_makes_no_sense_is_refused(run: Run, words: tuple[str, ...], error: str) -> None:
    outcome = run("train", *words)
    assert outcome.code == 2
    assert error in outcome.err


def test_data_is_cleaned_first_and_it_is_said(run: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"the {n} llamas eat {n * n} leaves and write to a{n}@b.org"}) for n in range(20)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, lines[0], '{"text": "# # #"}']), encoding="utf-8")
    outcome = run("train", "x.jsonl", *SHORT, "--clean", "quality,duplicates,personal", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "records dropped or changed: quality 1, duplicates 1, personal 20" in outcome.err
    assert "clean has 'x', which is no step" in run("train", "x.jsonl", "--clean", "x").err


def test_a_dry_run_says_what_it_would_take_and_takes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--recompute full", "--weights bf16", "--micro-rows 1")  # each is half a second
    monkeypatch.setattr(memory, "SAVINGS", {name: memory.SAVINGS[name] for name in few})
    outcome = run("train", "book.txt", *SHORT, "--dry-run", "--optimizer", "adamw")
    assert outcome.code == 0, outcome.err
    assert "pretrain by full, 0.1 M parameters, 2 x 32 tokens at once, adamw, fp32 products" in outcome.err
    sizes = {line[12:]: float(line[:10]) for line in outcome.out.splitlines() if "." in line[:10]}
    assert sizes["optimizer state"] == pytest.approx(2 * sizes["weights"], rel=0.1)
    peak = next(size for name, size in sizes.items() if name.startswith("at most at once ("))
    assert sizes["weights"] * 4 < peak < sum(size for name, size in sizes.items() if not name.startswith(("at", "--")))
    assert {name.partition(" (")[0] for name in sizes if name.startswith("--")} == set(few)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt"]
    quiet = run("train", "book.txt", *SHORT, "--dry-run", "--optimizer", "adamw", "-q")
    assert quiet.code == 0 and int(quiet.out) == round(peak)


def test_a_dry_run_of_several_processes_says_what_one_takes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def estimated(config: Any, recipe: Any, processes: int, *, others: Any) -> list[RankEstimate | None]:
        asked.append((recipe.tp, processes))
        own, less = (RankEstimate(3 * 2**20, 2**20, 2**20, 2**21, peak) for peak in (2**23, 2**22))
        return [own, None, *[less] * len(others)][: 1 + len(others)]

    monkeypatch.setattr(rank_memory, "estimate_ranks", estimated)
    outcome = run("train", "book.txt", *SHORT, "--dry-run", "--processes", "8", "--tp", "2")
    assert outcome.code == 0, outcome.err
    assert "one of 8 processes, that which takes the most" in outcome.err
    assert "       2.0  optimizer state\n       4.0  activations, gathered weights, messages and loss" in outcome.out
    assert "--recompute full" not in outcome.out and "4.0  --micro-rows 1 (saves 50 %)" in outcome.out
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run("train", "book.txt", *SHORT, "--dry-run", "--tp", "2", "-q").code == 0
    assert asked == [(2, 8), (2, 4)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--processes", "2"], "--processes is of --dry-run: start several by torchrun"),
        (["--processes", "0", "--dry-run"], "processes is 0: it must be from 1 to"),
        (["--processes", "3", "--tp", "2", "--dry-run"], "tp 2 must divide the number of processes, 3"),
    ],
)
def test_processes_that_cannot_be_are_refused(words: list[str], sentence: str, run: Run) -> None:
    outcome = run("train", "book.txt", *SHORT, *words)
    assert outcome.code == 2 and sentence in outcome.err


def test_a_printed_recipe_is_a_recipe_file(run: Run, tmp_path: Path) -> None:
    outcome = run("train", "book.txt", *SHORT, "--lr", "0.5", "--print-recipe")
    assert outcome.code == 0, outcome.err
    assert "steps = 3\n" in outcome.out
    assert "lr = 0.5\n" in outcome.out
    assert not (tmp_path / "trained").exists()
    (tmp_path / "r.toml").write_text(outcome.out, encoding="utf-8")
    assert run("train", "--recipe", "r.toml", "--print-recipe").out == outcome.out
    changed = run("train", "--recipe", "r.toml", "--print-recipe", "--lr", "0.25", "--clip", "2").out
    assert changed == outcome.out.replace("lr = 0.5", "lr = 0.25").replace("clip = 1.0", "clip = 2.0")


def test_the_loss_can_be_checked_first(run: Run) -> None:
    outcome = run("train", "book.txt", *SHORT, "--micro-rows", "1", "--check-loss", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert "a step in micro-batches and as one batch: the loss " in outcome.err


def test_every_setting_of_a_recipe_has_an_option() -> None:
    assert {field.name for field in fields(Recipe)} - {"data"} == train_settings.SETTINGS.keys()


def test_without_tensorboard_training_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = run("train", "book.txt", *SHORT, "--tensorboard", "-o", "out")
    assert outcome.code == 6
    assert not Path("out").exists()
    assert "tensorboard is not installed: pip install 'llamita[train]'" in outcome.err
