"""Adapters in training: only they are trained and saved, a resumed run is exact, and the files are peft's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llamita
from llamita.errors import UsageError
from llamita.files.safetensors import SafetensorsFile
from llamita.train import state
from llamita.train.draft import MANIFEST
from llamita.train.method import MERGED
from llamita.train.recipe import Recipe
from llamita.train.session import INSIDE
from llamita.train.setup import begin, resume, resumed_recipe
from tests.small import save_small_model


@pytest.fixture
def recipe(small_path: Path, tmp_path: Path) -> Recipe:
    lines = [json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) for n in range(30)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Recipe(
        data=(str(tmp_path / "sums.jsonl"),), model=str(small_path), method="lora", rank=3, targets="q_proj,mlp.*_proj",
        optimizer="adamw", steps=4, length=32, batch_tokens=64, precision="fp32", threads=1, save_every=2,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_only_the_adapter_is_trained_and_saved(tmp_path: Path, recipe: Recipe, small_path: Path, method: str) -> None:
    session = begin(replace(recipe, method=method, rslora=True, merge=True), tmp_path / "out")
    before = {name: weight.detach().clone() for name, weight in session.run.model.named_parameters()}
    losses = [line.loss for line in session.steps(lambda: False)]
    assert losses[-1] < losses[0]
    for name, weight in session.run.model.named_parameters():
        assert torch.equal(weight, before[name]) == (".pairs." not in name), name
    saved = SafetensorsFile(state.newest(tmp_path / "out" / INSIDE) / state.WEIGHTS).entries
    assert saved.keys() == session.run.weights().keys()
    assert all(".pairs." in name for name in saved)
    adapted = llamita.load(small_path, adapter=tmp_path / "out", kernels="off").model
    merged = llamita.load(tmp_path / "out" / MERGED, kernels="off").model
    weights = dict(merged.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in adapted.named_parameters())


def test_a_new_adapter_is_the_same_under_another_default_dtype(tmp_path: Path, recipe: Recipe) -> None:
    expected = begin(recipe, tmp_path / "one").run.weights()
    torch.set_default_dtype(torch.float64)
    try:
        found = begin(recipe, tmp_path / "other").run.weights()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(
    "changes", [{"task": "sft"}, {"task": "dpo", "loss": "kto"}, {"task": "grpo", "group": 2}], ids=str
)
def test_steps_are_the_same_under_another_default_device(
    tmp_path: Path, recipe: Recipe, changes: dict[str, object]
) -> None:
    fields = {"sft": {"completion": "1"}, "dpo": {"completion": "1", "label": 1}, "grpo": {"answer": "1"}}
    rows = [{"prompt": f"{n}+1=", **fields[str(changes["task"])]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = replace(recipe, data=(str(tmp_path / "rows.jsonl"),), length=48, held_out=0.3, steps=2, **changes)  # type: ignore[arg-type]
    expected = [line.loss for line in begin(recipe, tmp_path / "one").steps(lambda: False)]
    torch.set_default_device("meta")
    try:
        found = [line.loss for line in begin(recipe, tmp_path / "other").steps(lambda: False)]
    finally:
        torch.set_default_device(None)
    assert found == expected


def test_a_resumed_adapter_ends_with_the_same_bits(tmp_path: Path, recipe: Recipe) -> None:
    list(begin(recipe, tmp_path / "whole").steps(lambda: False))
    first = begin(recipe, tmp_path / "parts")
    list(first.steps(lambda: first.run.step >= 1))
    second = resume(resumed_recipe(tmp_path / "parts", {}), tmp_path / "parts")
    list(second.steps(lambda: False))
    manifests = [(state.newest(tmp_path / name / INSIDE) / MANIFEST).read_text() for name in ("whole", "parts")]
    assert manifests[0] == manifests[1]
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_base_that_changed_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    save_small_model(tmp_path / "base", seed=1)
    recipe = replace(recipe, model=str(tmp_path / "base"))
    list(begin(recipe, tmp_path / "out").steps(lambda: False))
    save_small_model(tmp_path / "base", seed=2)
    with pytest.raises(UsageError, match=r"the base model is not what .* was trained on"):
        resume(resumed_recipe(tmp_path / "out", {}), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "q_prj"}, "no module is named 'q_prj': did you mean q_proj"),
        ({"model": None}, "method is lora, which adapts a trained model: name one with --model"),
        (
            {"targets": "lm_head", "merge": True},
            "lm_head shares its weight .*: leave it out of the targets, or --merge",
        ),
        ({"targets": "embed_tokens,q_proj", "merge": True, "method": "dora"}, "model.embed_tokens shares its weight"),
        ({"rank": 177}, "rank is 177, and model.layers.0.self_attn.q_proj is a matrix of 64 by 64: give at most 64"),
        ({"rank": 177, "targets": "up_proj"}, "model.layers.0.mlp.up_proj is a matrix of 176 by 64: give at most 176"),
        ({"method": "ia3"}, "method is 'ia3': use one of full, lora, dora, qlora"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, recipe: Recipe, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        begin(replace(recipe, **changes), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
