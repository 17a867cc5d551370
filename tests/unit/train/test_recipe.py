"""Recipes: files, checks, and the way back."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.train_settings import SETTINGS
from llamita.errors import BrokenFileError, UsageError
from llamita.parallel.mesh import Degrees
from llamita.train.recipe import Recipe
from llamita.train.recipe_file import make_recipe, read_recipe


def test_a_recipe_is_written_and_read_the_same(tmp_path: Path) -> None:
    recipe = Recipe(data=("a b.txt", 'q"\\.txt'), model="cria", steps=7, lr=1e-4, task="sft")
    path = tmp_path / "r.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert make_recipe(read_recipe(path)) == recipe
    assert (recipe.rows, recipe.rate, Recipe().rate) == (4, 1e-4, 2e-2)


def test_every_setting_has_an_option_and_its_default_is_said() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    assert set(SETTINGS) == set(defaults) - {"data"}
    for name, (kind, _, text) in SETTINGS.items():
        if kind in (int, float) and defaults[name] is not None:
            assert f"(default: {defaults[name]:g})" in text, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 7}, "the recipe has 'stepz', which is no setting: did you mean 'steps'"),
        ({"batch-tokens": 7}, "the recipe has 'batch-tokens', which is no setting: did you mean 'batch_tokens'"),
        ({"learning_rate": 7}, "the recipe has 'learning_rate', which is no setting: write lr"),
        ({"train": {"steps": 1}}, "the recipe has the table 'train': settings stand outside of tables"),
        ({"zzz": 1}, "the recipe has 'zzz', which is no setting: leave it out, or take one of data, clean, task"),
        ({"data": [3]}, "data in the recipe has 3: it must be a list of files' names"),
        ({"data": [["a.txt"]]}, r"data in the recipe has \['a.txt'\]: it must be a list"),
        ({"steps": "7"}, "steps in the recipe is '7': it must be a whole number"),
        ({"steps": True}, "steps in the recipe is True"),
        ({"steps": 0}, "steps is 0: it must be from 1"),
        ({"data": "a.txt"}, "it must be a list of files' names"),
        ({"lr": 11}, "lr is 11"),
        ({"schedule": "step"}, "schedule is 'step': use one of wsd, cosine, linear, constant"),
        ({"optimizer": "sgd"}, "use one of adamw, adamw8bit, muon, lion, adafactor"),
        ({"loss": "ipo", "beta": 0.0}, "beta is 0, and the loss ipo divides by it: give one above 0"),
        ({"z_loss": 0.1, "task": "grpo"}, "z_loss is of pretrain and sft, and the task is grpo: leave --z-loss out"),
        (
            {"z_loss": 0.1, "tp": 2},
            "z_loss needs all logits of a token, and --tp 2 shards them: leave one of the two out",
        ),
        ({"length": 4096}, "batch_tokens is 1024, less than one row of 4096"),
    ],
)
def test_wrong_values_are_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_recipe(values)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("steps = ", encoding="utf-8")
    with pytest.raises(BrokenFileError, match=r"r\.toml is not valid TOML"):
        read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exact_scaling": True, "tp": 2}, "--exact-scaling is for data parallelism, and tp is 2: leave one"),
    ],
)
def test_what_does_not_go_with_a_sharded_model_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        make_recipe(values)


def test_degrees_are_those_of_the_recipe() -> None:
    assert make_recipe({"tp": 3, "cp": 2, "pp": 4}).degrees == Degrees(tp=3, cp=2, pp=4)
