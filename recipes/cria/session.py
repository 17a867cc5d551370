"""The session of a recipe of cria, as `llamita.train` trains it: at its first step, or from its last checkpoint."""

import re
from itertools import islice

import torch
from tokenizers import Tokenizer

from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer
from llamita.train import savings, state
from llamita.train.run import Run
from llamita.train.session import INSIDE, Session
from llamita.train.shapes import config_of, first_weights
from recipes.cria.corpus import Corpus
from recipes.cria.recipe import CriaRecipe
from recipes.cria.source import CorpusSource, rows_of
from recipes.cria.tokens import train_tokenizer, write_tokenizer

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
