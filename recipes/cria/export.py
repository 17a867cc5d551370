"""Writing the model as a plain Hugging Face folder: bf16 weights without the tied head, tokenizer, template, defaults.

`python -m recipes.cria.export RUN FOLDER` writes what a run has saved last, also while it is still going.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from llamita.files.write import save_checkpoint, write_text
from llamita.model.llama import LlamaForCausalLM
from recipes.cria.recipe import CriaRecipe, read_recipe
from recipes.cria.session import begin
from recipes.cria.tokens import token_ids, write_tokenizer


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: CriaRecipe, folder: Path | None = None) -> Path:
    """Write everything but the model card to the recipe's output folder, or another; returns the folder."""
    folder = folder or recipe.output
    state = {name: weight.detach() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_checkpoint({name: weight.to(torch.bfloat16) for name, weight in sorted(state.items())}, folder)
    ids = token_ids(tokenizer)
    extra = {**model.config.extra, "architectures": [type(model).__name__]}  # by which other tools know a Llama
    model.config.replace(dtype="bfloat16", eos_token_id=ids["eos_token_id"], extra=extra).save_pretrained(folder)
    write_tokenizer(tokenizer, folder, length=recipe.train.length)
    write_text(folder / "recipe.toml", recipe.text)
    return folder


def main() -> None:
    """Export the last checkpoint of a run."""
    parser = argparse.ArgumentParser(description="Write a run's last checkpoint as a Hugging Face folder.")
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/cria.toml"))
    parser.add_argument("--steps", type=int, help="of the run, where they are not the recipe's")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, steps=arguments.steps, run=arguments.run)
    run = begin(recipe).run
    tokenizer = Tokenizer.from_file(str(recipe.run / "tokenizer.json"))
    print(f"step {run.step}: {export(run.model, tokenizer, recipe, arguments.folder)}")


if __name__ == "__main__":
    main()
