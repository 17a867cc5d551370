"""The reference model: a resumed run has the same one, for all weights and for adapters."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llamita.train import state
from llamita.train.draft import MANIFEST
from llamita.train.recipe import Recipe
from llamita.train.session import INSIDE
from llamita.train.setup import begin, resume, resumed_recipe


def test_no_row_needs_to_be_held_out(small_path: Path, tmp_path: Path) -> None:
    line = json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "llamas"})
    (tmp_path / "pairs.jsonl").write_text(f"{line}\n" * 5, encoding="utf-8")
    recipe = Recipe(
        data=(str(tmp_path / "pairs.jsonl"),), model=str(small_path), steps=1, length=64, batch_tokens=64,
        precision="fp32", threads=1, held_out=0.0,
    )  # fmt: skip
    assert [line.held_out_loss for line in begin(recipe, tmp_path / "out").steps(lambda: False)] == [None]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_resumed_run_has_the_same_reference(small_path: Path, tmp_path: Path, method: str, loss: str) -> None:
    lines = [json.dumps({"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": f"{n} llamas"}) for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = Recipe(
        data=(str(tmp_path / "pairs.jsonl"),), model=str(small_path), method=method, loss=loss, optimizer="adamw",
        steps=4, length=64, batch_tokens=256, micro_rows=2, precision="fp32", threads=1, lr=3e-3, held_out=0.2,
        evaluate_every=4,
    )  # fmt: skip
    task = "dpo" if loss == "kto" else "auto"
    whole = list(begin(replace(recipe, task=task), tmp_path / "whole").steps(lambda: False))
    first = begin(replace(recipe, task=task), tmp_path / "parts")
    assert first.recipe.task == "dpo"
    list(first.steps(lambda: first.run.step >= 2))
    list(resume(resumed_recipe(tmp_path / "parts", {}), tmp_path / "parts").steps(lambda: False))
    manifests = [(state.newest(tmp_path / name / INSIDE) / MANIFEST).read_text() for name in ("whole", "parts")]
    assert manifests[0] == manifests[1]
    figures = whole[-1].figures
    assert figures is not None
    assert figures["margin"] > 0
