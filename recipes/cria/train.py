"""Training cria by llamita's one loop: `python -m recipes.cria.train recipes/cria.toml` makes `llamita/cria`.

Stopped and started again, it goes on from its last checkpoint exactly: the rows of a step depend on its number alone.
"""

import argparse
import re
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer
from llamita.train import savings, state
from llamita.train.run import Run
from llamita.train.session import INSIDE, Session
from llamita.train.shapes import config_of, first_weights
from llamita.train.stopping import stopped_by_signals
from recipes.cria.corpus import Corpus
from recipes.cria.export import export, write_tokenizer
from recipes.cria.recipe import CriaRecipe, read_recipe
from recipes.cria.source import CorpusSource, rows_of
from recipes.cria.tokens import train_tokenizer

HELD_OUT = 64  # rows


def prepare_tokenizer(recipe: CriaRecipe) -> Tokenizer:
    """The run's tokenizer, trained on the first documents of the corpus if there is none yet."""
    path = recipe.run / "tokenizer.json"
    if not path.exists():
        documents = islice(Corpus(recipe.mix, seed=recipe.train.seed).stream("tokenizer"), recipe.tokenizer_documents)
        texts = ("".join(segment.text for segment in document) for document in documents)
        plain = (piece for text in texts for piece in re.split(r"<\|\w+\|>", text))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tokenizer(train_tokenizer(plain, vocab_size=recipe.vocab_size), recipe.run, length=recipe.train.length)
    return Tokenizer.from_file(str(path))


def begin(recipe: CriaRecipe) -> Session:
    """The session of a recipe, from its last checkpoint if there is one."""
    library, settings = prepare_tokenizer(recipe), recipe.train
    tokenizer = load_tokenizer(recipe.run)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads or 1)
    model = LlamaForCausalLM.without_weights(config_of(settings.shape, tokenizer, length=settings.length))
    first_weights(model, seed=settings.seed, device=torch.device("cpu"))
    savings.prepare(model, settings)
    run = Run(model.train(), savings.optimizers(model, settings), CorpusSource(recipe, library), settings.steps or 1)
    if state.has_checkpoint(recipe.run / INSIDE):
        state.restore(run, recipe.run / INSIDE)
    apart = Corpus(recipe.mix, seed=settings.seed, held_out=True)
    measured = rows_of(apart, range(HELD_OUT), library, length=settings.length)
    return Session(settings, run, measured, tokenizer, recipe.run)


def main() -> None:
    """Train, log every step to the run's folder, and write the finished model."""
    parser = argparse.ArgumentParser(description="Train cria from its recipe; resumes by itself.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, help="a budget other than the recipe's")
    parser.add_argument("--run", type=Path, help="a folder for the training other than the recipe's")
    parser.add_argument("--output", type=Path, help="a folder for the finished model other than the recipe's")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe, steps=arguments.steps, run=arguments.run, output=arguments.output)
    with state.locked(recipe.run / INSIDE), stopped_by_signals() as should_stop:
        session = begin(recipe)
        for metrics in session.steps(should_stop):
            if metrics.held_out_loss is not None:
                print(f"step {metrics.step}: loss {metrics.loss:.3f}, held out {metrics.held_out_loss:.3f}", flush=True)
    if session.run.step == session.run.steps:
        print(f"wrote {export(session.run.model, prepare_tokenizer(recipe), recipe)}")


if __name__ == "__main__":
    main()
