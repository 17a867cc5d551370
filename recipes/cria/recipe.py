"""A recipe file, read: every number that decides what the model becomes."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from llamita.train.recipe import Recipe
from llamita.train.recipe_file import make_recipe


@dataclass(frozen=True, kw_only=True)
class CriaRecipe:
    """What `recipes/cria.toml` says; `text` is the file itself, which is shipped beside the weights.

    output: the folder of the finished model. run: the folder of its training, and of the tokenizer.
    """

    text: str
    output: Path
    run: Path
    vocab_size: int
    tokenizer_documents: int
    mix: dict[str, float]
    second_half: dict[str, float]
    train: Recipe

    def mix_at(self, row: int) -> dict[str, float]:
        """The mix of a row: in the second half, some kinds of text come more often or less."""
        return self.mix | (self.second_half if 2 * row >= self.rows else {})

    @property
    def rows(self) -> int:
        """Rows of the whole run."""
        assert self.train.steps is not None
        return self.train.steps * self.train.rows


def read_recipe(
    path: Path, *, steps: int | None = None, run: Path | None = None, output: Path | None = None
) -> CriaRecipe:
    """Read a recipe; `steps`, `run` and `output` replace its own."""
    text = path.read_text(encoding="utf-8")
    values = tomllib.loads(text)
    train = make_recipe({"task": "pretrain", **values["train"]}, source=str(path))
    return CriaRecipe(
        text=text,
        output=output or Path(values["output"]),
        run=run or Path(values["run"]),
        vocab_size=values["tokenizer"]["vocab_size"],
        tokenizer_documents=values["tokenizer"]["documents"],
        mix=values["mix"],
        second_half=values["second_half"],
        train=replace(train, steps=steps or train.steps),
    )
