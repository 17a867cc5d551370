"""A run of a tiny model on made-up rows; the model has dropout, so that the random generator matters."""

from dataclasses import replace
from pathlib import Path

import torch

from llamita.config import LlamaConfig
from llamita.data.documents import IGNORED, Document
from llamita.data.loader import Loader
from llamita.data.packing import Rows, pack
from llamita.model.llama import LlamaForCausalLM
from llamita.train import optim, state
from llamita.train.loop import train
from llamita.train.recipe import Recipe
from llamita.train.run import Run

CONFIG = LlamaConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
    num_hidden_layers=2, max_position_embeddings=16, attention_dropout=0.1, tie_word_embeddings=True,
)  # fmt: skip
RECIPE = Recipe(task="sft", steps=6, length=16, batch_tokens=64, micro_rows=2, precision="fp32", save_every=2)


def make_rows() -> Rows:
    """19 rows or so of 16 tokens, of documents with parts that are not learned; fewer than two epochs need."""
    generator = torch.Generator().manual_seed(1)
    documents = []
    for length in torch.randint(2, 16, (32,), generator=generator).tolist():
        ids = torch.randint(0, 31, (length + 1,), generator=generator, dtype=torch.int32)
        targets = ids[1:].clone()
        targets[: length // 3] = IGNORED
        documents.append(Document(ids[:-1], targets, is_splittable=False))
    return pack(documents, 16)


def make_run(rows: Rows, recipe: Recipe = RECIPE, config: LlamaConfig = CONFIG) -> Run:
    """A run at its first step."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config).train()
    optimizers = optim.build(recipe.optimizer, model, lr=recipe.rate, weight_decay=recipe.weight_decay)
    return Run(model, optimizers, Loader(rows, seed=recipe.seed), recipe.steps or 1)


def go_on(folder: Path, *, until: int, recipe: Recipe = RECIPE) -> Path:
    """Resume the run in a folder, or begin it, train to a step, and save; returns the checkpoint."""
    run = make_run(make_rows(), recipe)
    torch.manual_seed(until + 100)  # whatever the process did before must not matter once a run is resumed
    if any(folder.glob("step-*[0-9]")):
        state.restore(run, folder)
    else:
        torch.manual_seed(recipe.seed)
    for _ in train(run, recipe, held_out=[], should_stop=lambda: run.step >= until):
        if run.step % recipe.save_every == 0:
            state.save(run, folder)
    return state.save(run, folder)


def with_optimizer(name: str) -> Recipe:
    """The recipe with another optimizer."""
    return replace(RECIPE, optimizer=name)
