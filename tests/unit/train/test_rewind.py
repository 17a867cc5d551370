"""Rewinding: the weights and optimizer state of any step, bit for bit, whatever happened to the run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llamita
from llamita.errors import LlamitaError, UsageError
from llamita.files.disk import read_json
from llamita.model.llama import LlamaForCausalLM
from llamita.train import state
from llamita.train.draft import MANIFEST
from llamita.train.metrics import Metrics, read_log
from llamita.train.recipe import Recipe
from llamita.train.rewind import rewind
from llamita.train.session import INSIDE, LOG
from llamita.train.setup import begin, resume, resumed_recipe
from llamita.train.shapes import first_weights


@pytest.fixture
def recipe(small_path: Path, tmp_path: Path) -> Recipe:
    text = tmp_path / "book.txt"
    text.write_text("\f".join(f"the {n} llamas eat {n * n} leaves" for n in range(40)), encoding="utf-8")
    return Recipe(
        data=(str(text),), shape="pico", tokenizer=str(small_path), steps=9, length=32, batch_tokens=64, micro_rows=1,
        precision="fp32", threads=1, held_out=0.1, evaluate_every=2, save_every=3,
    )  # fmt: skip


def run(folder: Path, recipe: Recipe, *, until: int, **changes: object) -> None:
    """Begin or resume with changes, and train to a step."""
    is_new = not state.has_checkpoint(folder / INSIDE)
    session = begin(recipe, folder) if is_new else resume(resumed_recipe(folder, changes), folder)
    list(session.steps(lambda: session.run.step >= until))


def manifest(folder: Path, step: int) -> dict[str, Any]:
    """Sizes and sha256 of a run's checkpoint of a step: weights, optimizer state, counters."""
    return read_json(folder / INSIDE / f"step-{step:08d}" / MANIFEST)


@pytest.mark.parametrize("step", [0, 2, 6, 7])
def test_any_step_is_that_of_a_run_that_stopped_there(tmp_path: Path, recipe: Recipe, step: int) -> None:
    run(tmp_path / "whole", recipe, until=9)
    seen: list[Metrics] = []
    rewind(tmp_path / "whole", tmp_path / "back", step, observer=seen.append)
    # Two checkpoints are kept, of 6 and 9: earlier steps begin with the first weights.
    assert [metrics.step for metrics in seen] == list(range(7 if step >= 6 else 1, step + 1))
    run(tmp_path / "stopped", recipe, until=step)
    assert manifest(tmp_path / "back", step) == manifest(tmp_path / "stopped", step)
    files = [tmp_path / name / "model.safetensors" for name in ("back", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [line.step for line in read_log(tmp_path / "back" / INSIDE / LOG)] == list(range(1, step + 1))


def test_what_was_changed_on_the_way_is_changed_again(tmp_path: Path, recipe: Recipe) -> None:
    for until, changes in ((2, {}), (5, {"lr": 0.5}), (7, {"steps": 12, "batch_tokens": 128}), (12, {"clip": 0.1})):
        run(tmp_path / "whole", recipe, until=until, **changes)
        if until == 7:
            expected = manifest(tmp_path / "whole", 7)
    rewind(tmp_path / "whole", tmp_path / "back", 7, observer=lambda metrics: None)
    assert manifest(tmp_path / "back", 7) == expected
    assert resumed_recipe(tmp_path / "back", {}).lr == 0.5
    # The run that was rewound goes on as the first one did.
    run(tmp_path / "back", recipe, until=12, clip=0.1)
    assert manifest(tmp_path / "back", 12) == manifest(tmp_path / "whole", 12)


def test_a_shortened_run_is_taken_again_as_it_was(tmp_path: Path, recipe: Recipe) -> None:
    session = begin(recipe, tmp_path / "whole")

    class Slow:
        def fitting(self, step: int) -> int:
            return 6 if step >= 2 else 9

    session.deadline = Slow()  # type: ignore[assignment]
    assert len(list(session.steps(lambda: False))) == 6
    expected = manifest(tmp_path / "whole", 6)
    state_at_3 = tmp_path / "whole" / INSIDE / "step-00000003"
    for file in state_at_3.iterdir():
        file.unlink()  # so that the replay begins before the change
    rewind(tmp_path / "whole", tmp_path / "back", 5, observer=lambda metrics: None)
    run(tmp_path / "back", recipe, until=6)
    assert manifest(tmp_path / "back", 6) == expected
    assert llamita.load(tmp_path / "back", kernels="off").generate("the", max_tokens=1).text is not None


def test_kept_checkpoints_shorten_the_way(tmp_path: Path, recipe: Recipe) -> None:
    run(tmp_path / "whole", replace(recipe, keep_checkpoints=5), until=9)
    assert len(list((tmp_path / "whole" / INSIDE).glob("step-*"))) == 3
    seen: list[Metrics] = []
    rewind(tmp_path / "whole", tmp_path / "back", 4, observer=seen.append)
    assert [metrics.step for metrics in seen] == [4]


def test_a_step_that_comes_out_otherwise_leaves_no_folder(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", recipe, until=4)
    monkeypatch.setattr("llamita.train.run_model.first_weights", other_weights)
    with pytest.raises(LlamitaError, match=r"step 1 has a loss of .* and had .*: the machine, torch, the base model"):
        rewind(tmp_path / "whole", tmp_path / "back", 2, observer=lambda metrics: None)
    assert not (tmp_path / "back").exists()


def other_weights(model: LlamaForCausalLM, *, seed: int, device: torch.device) -> None:
    first_weights(model, seed=seed + 1, device=device)


def test_what_cannot_be_rewound_is_one_sentence(tmp_path: Path, recipe: Recipe) -> None:
    ignore = {"observer": lambda metrics: None}
    with pytest.raises(UsageError, match="has no history of a run"):
        rewind(tmp_path, tmp_path / "back", 1, **ignore)
    run(tmp_path / "whole", recipe, until=2)
    with pytest.raises(UsageError, match="has taken 2 steps: give a --step from 0 to 2"):
        rewind(tmp_path / "whole", tmp_path / "back", 3, **ignore)
    with pytest.raises(UsageError, match="exists already"):
        rewind(tmp_path / "whole", tmp_path, 1, **ignore)
    log = tmp_path / "whole" / INSIDE / LOG
    lines = log.read_text(encoding="utf-8")
    log.write_text(lines.split("\n", 1)[1], encoding="utf-8")
    with pytest.raises(LlamitaError, match=r"the log of the run lacks step 1, .* restore metrics.jsonl"):
        rewind(tmp_path / "whole", tmp_path / "back", 1, **ignore)
    log.write_text(lines, encoding="utf-8")
    (tmp_path / "book.txt").write_text("another book " * 99, encoding="utf-8")
    with pytest.raises(UsageError, match=r"the data is not what .* was trained on: restore the files"):
        rewind(tmp_path / "whole", tmp_path / "back", 1, **ignore)
