"""Sessions: from files to a Hugging Face folder, stopped and resumed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import llamita
from llamita.data import endless
from llamita.errors import BrokenFileError, LlamitaError, UsageError
from llamita.files.disk import read_json
from llamita.train import state
from llamita.train.draft import MANIFEST
from llamita.train.endless import all_windows
from llamita.train.measure import Deadline
from llamita.train.metrics import read_log
from llamita.train.recipe import Recipe
from llamita.train.session import INSIDE, MEASURED_ROWS
from llamita.train.setup import begin, resume, resumed_recipe


@pytest.fixture
def recipe(small_path: Path, tmp_path: Path) -> Recipe:
    text = tmp_path / "book.txt"
    text.write_text("\f".join(f"the {n} llamas eat {n * n} leaves" for n in range(40)), encoding="utf-8")
    return Recipe(
        data=(str(text),), shape="pico", tokenizer=str(small_path), steps=4, length=32, batch_tokens=64, micro_rows=1,
        precision="fp32", threads=1, held_out=0.1, evaluate_every=2, save_every=2,
    )  # fmt: skip


def run(folder: Path, recipe: Recipe, *, until: int = 10**9) -> dict[str, Any]:
    """Begin or resume, train to a step; returns the manifest of the last checkpoint."""
    is_new = not state.has_checkpoint(folder / INSIDE)
    session = begin(recipe, folder) if is_new else resume(resumed_recipe(folder, {}), folder)
    list(session.steps(lambda: session.run.step >= until))
    return read_json(state.newest(folder / INSIDE) / MANIFEST)


def test_a_resumed_session_ends_with_the_same_bits_and_one_log(tmp_path: Path, recipe: Recipe) -> None:
    whole = run(tmp_path / "whole", recipe)
    run(tmp_path / "parts", recipe, until=1)
    run(tmp_path / "parts", recipe, until=3)
    assert run(tmp_path / "parts", recipe) == whole
    logs = [read_log(tmp_path / name / INSIDE / "metrics.jsonl") for name in ("whole", "parts")]
    assert [line.loss for line in logs[0]] == [line.loss for line in logs[1]]
    assert [line.step for line in logs[0] if line.held_out_loss is not None] == [2, 4]
    llm = llamita.load(tmp_path / "whole", kernels="off")
    assert llm.generate("the", max_tokens=3).text
    assert llm.model.config.vocab_size == 260


def test_a_checkpoint_is_fine_tuned_on_answers(tmp_path: Path, recipe: Recipe, small_path: Path) -> None:
    lines = [json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) for n in range(30)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tuned = replace(
        recipe, data=(str(tmp_path / "sums.jsonl"),), model=str(small_path), optimizer="adamw", steps=20, held_out=0.0
    )
    session = begin(tuned, tmp_path / "tuned")
    assert session.recipe.task == "sft"
    losses = [line.loss for line in session.steps(lambda: False)]
    assert losses[-1] < 0.8 * losses[0]
    assert session.run.tokens == read_log(session.log_path)[-1].tokens


def test_one_long_text_has_a_held_out_part_too(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "long.txt").write_text("all work and no play " * 60, encoding="utf-8")
    session = begin(replace(recipe, data=(str(tmp_path / "long.txt"),)), tmp_path / "out")
    assert 1 <= len(session.held_out) <= MEASURED_ROWS
    assert len(session.run.loader) > 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "optimizer of the run in .* is 'muon' and cannot become 'lion'"),
        ({"length": 64}, "length of the run in .* is 32 and cannot become 64"),
        ({"weights": "bf16"}, "weights of the run in .* is 'fp32' and cannot become 'bf16'"),
        ({"minutes": 2.0}, "are 4 steps once it has begun: give --steps"),
    ],
)
def test_a_resumed_run_is_the_same_run(
    tmp_path: Path, recipe: Recipe, changes: dict[str, object], message: str
) -> None:
    inside = tmp_path / "out" / INSIDE
    inside.mkdir(parents=True)
    (inside / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        resumed_recipe(tmp_path / "out", changes)
    assert resumed_recipe(tmp_path / "out", {"steps": 9, "lr": 0.1}) == replace(recipe, steps=9, lr=0.1)
    (inside / "recipe.toml").write_text(recipe.to_toml().partition("optimizer")[0], encoding="utf-8")
    with pytest.raises(BrokenFileError, match=r"recipe\.toml has no rank, as it is cut or of another version: add the"):
        resumed_recipe(tmp_path / "out", {})


def test_a_save_that_fails_names_the_checkpoint_to_go_on_from_if_there_is_one(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(replace(recipe, save_every=1), tmp_path / "out")

    def full(*args: object, **named: object) -> None:
        raise LlamitaError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", full)
        with pytest.raises(LlamitaError, match=r"^the disk is full$"):
            list(session.steps(lambda: False))
    steps = session.steps(lambda: False)
    next(steps)
    monkeypatch.setattr(state, "save", full)
    with pytest.raises(LlamitaError, match=r"^the disk is full; the last checkpoint is whole, --resume goes on"):
        list(steps)


def test_a_run_of_minutes_is_shortened_to_end_in_time(tmp_path: Path, recipe: Recipe) -> None:
    session = begin(replace(recipe, steps=None, minutes=10), tmp_path / "out")
    assert session.run.steps > 3
    session.deadline = Deadline(0, session.run.steps)
    assert [line.step for line in session.steps(lambda: False)] == [1, 2]
    assert resumed_recipe(tmp_path / "out", {}).steps == 2
    assert read_log(session.log_path)[-1].held_out_loss is not None


def test_a_row_longer_than_the_model_reads_is_refused(tmp_path: Path, recipe: Recipe, small_path: Path) -> None:
    with pytest.raises(UsageError, match=r"length is 256, but .* reads at most 128 tokens: lower --length"):
        begin(replace(recipe, model=str(small_path), length=256, batch_tokens=256), tmp_path / "out")


def test_a_new_tokenizer_is_trained_on_the_data_and_resumed_with(tmp_path: Path, recipe: Recipe) -> None:
    new = replace(recipe, tokenizer="new", vocab_size=300)
    whole = run(tmp_path / "whole", new)
    run(tmp_path / "parts", new, until=2)
    assert run(tmp_path / "parts", new) == whole
    llm = llamita.load(tmp_path / "parts", kernels="off")
    assert llm.model.config.vocab_size == llm.tokenizer.vocab_size == 300
    assert len(llm.tokenizer.encode("the 1 llamas eat 1 leaves", add_special_tokens=False)) < 12


def test_a_dataset_without_an_end_is_resumed_at_the_exact_token(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"{n} llamas eat {n * n % 97} leaves, and {n % 7} sleep"} for n in range(40)]
    library = SimpleNamespace(load_dataset=lambda *_, **__: rows, DownloadConfig=lambda **_: None)
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    monkeypatch.setattr(endless, "WINDOW", 2)
    recipe = replace(recipe, data=("hf:org/name:train:*",))
    whole = run(tmp_path / "whole", recipe)
    for until in (1, 4, 10**9):
        parts = run(tmp_path / "parts", recipe, until=until)
    assert parts == whole
    assert (
        read_json(state.newest(tmp_path / "whole" / INSIDE) / "state.json")["position"] == 8
    )  # in several windows: two texts fill at most 4 rows
    with pytest.raises(UsageError, match="has no end, and neither has the run: give --steps"):
        begin(replace(recipe, steps=None), tmp_path / "other")
    with pytest.raises(UsageError, match="and grpo needs all of its data: give rows for the"):
        all_windows(replace(recipe, task="grpo"), None, None, None, offline=False)  # type: ignore[arg-type]
