"""Writing the model as a plain Hugging Face folder: bf16 weights without the tied head, tokenizer, template, defaults.

`python -m recipes.cria.export RUN FOLDER` writes what a run has saved last, also while it is still going.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from llamita.files.write import save_checkpoint, write_json, write_text
from llamita.model.llama import LlamaForCausalLM
from recipes.cria.recipe import CriaRecipe, read_recipe
from recipes.cria.tokens import BOS, END, EOM, EOT, PAD

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: CriaRecipe, folder: Path | None = None) -> Path:
    """Write everything but the model card to the recipe's output folder, or another; returns the folder."""
    folder = folder or recipe.output
    state = {name: weight.detach() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_checkpoint({name: weight.to(torch.bfloat16) for name, weight in sorted(state.items())}, folder)
    ids = _token_ids(tokenizer)
    extra = {**model.config.extra, "architectures": [type(model).__name__]}  # by which other tools know a Llama
    model.config.replace(dtype="bfloat16", eos_token_id=ids["eos_token_id"], extra=extra).save_pretrained(folder)
    write_tokenizer(tokenizer, folder, length=recipe.train.length)
    write_text(folder / "recipe.toml", recipe.text)
    return folder


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, length: int) -> None:
    """Write the tokenizer, what its special tokens are for, the chat template, and how to sample."""
    write_json(folder / "generation_config.json", _token_ids(tokenizer) | SAMPLING)
    template = TEMPLATE.read_text(encoding="utf-8")
    names = {"bos_token": BOS, "eos_token": EOT, "pad_token": PAD}
    more = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "chat_template": template}
    flags = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", names | more | flags)
    write_json(folder / "special_tokens_map.json", names)
    write_text(folder / "chat_template.jinja", template)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(token) for token in (END, EOT, EOM)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def main() -> None:
    """Export the last checkpoint of a run."""
    from recipes.cria.train import begin  # training ends with an export, so it imports this file

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
