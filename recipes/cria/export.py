"""Writing the model as a plain Hugging Face folder: bf16 weights without the tied head, tokenizer, template, defaults.

`python -m recipes.cria.export recipes/cria.toml FOLDER` writes the last checkpoint of a run that is still going.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from llamita.files.write import save_checkpoint, write_json, write_text
from llamita.model.llama import LlamaForCausalLM
from recipes.cria.recipe import Recipe, read_recipe
from recipes.cria.tokens import BOS, EOT, PAD

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe, folder: Path | None = None) -> Path:
    """Write everything but the model card to the recipe's output folder, or another; returns the folder."""
    folder = folder or recipe.output
    config = recipe.config(tokenizer)
    state = {name: weight.detach() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_checkpoint({name: weight.to(torch.bfloat16) for name, weight in sorted(state.items())}, folder)
    config.save_pretrained(folder)
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
    }
    write_json(folder / "generation_config.json", ids | SAMPLING)
    template = TEMPLATE.read_text(encoding="utf-8")
    names = {"bos_token": BOS, "eos_token": EOT, "pad_token": PAD}
    more = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": recipe.length, "chat_template": template}
    flags = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", names | more | flags)
    write_json(folder / "special_tokens_map.json", names)
    write_text(folder / "chat_template.jinja", template)
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_text(folder / "recipe.toml", recipe.text)
    return folder


def main() -> None:
    """Export the checkpoint of a run."""
    from recipes.cria.train import Run  # the loop ends with an export, so it imports this file

    parser = argparse.ArgumentParser(description="Write a run's last checkpoint as a Hugging Face folder.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    run = Run(read_recipe(arguments.recipe))
    print(f"step {run.step}: {export(run.model, run.tokenizer, run.recipe, arguments.folder)}")


if __name__ == "__main__":
    main()
