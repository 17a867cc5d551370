"""The text by which quantized models are judged: `python -m recipes.cria.held_out` writes llamita/cria/held_out.txt.

Stories, plain texts and functions that training never saw, a form feed between them.
"""

from pathlib import Path

from recipes.cria.corpus import Corpus
from recipes.cria.recipe import read_recipe
from recipes.cria.tokens import BOS, END

KINDS = {"story": 4.0, "plain": 4.0, "functions": 1.0}
SIZE = 60_000  # characters


def text(seed: int) -> str:
    """Whole documents of a stream that training does not read, until they are long enough."""
    parts: list[str] = []
    for document in Corpus(KINDS, seed=seed, held_out=True).stream("quantize"):
        parts.append("".join(segment.text for segment in document).removeprefix(BOS).removesuffix(END))
        if sum(map(len, parts)) >= SIZE:
            return "\f".join(parts)
    raise AssertionError("a stream has no end")


if __name__ == "__main__":
    recipe = read_recipe(Path("recipes/cria.toml"))
    (recipe.output / "held_out.txt").write_text(text(recipe.train.seed), encoding="utf-8")
