"""The model of a run: a new one, or a checkpoint's; its weights may come once it is sharded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch

from llamita.checkpoint.load import load_pretrained, unread
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.method import METHODS, adapt, adapt_unread, check_merges, check_rank
from llamita.train.recipe import Recipe
from llamita.train.shapes import config_of, first_weights
from llamita.train.tasks.reward import first_head, with_reward_head

Read = Callable[[LlamaForCausalLM], Callable[[], str] | None]


@dataclass(frozen=True)
class RunModel:
    """A model with what is trained of it, its tokenizer, and the fingerprint of what is frozen.

    read: gives a model on the meta device its weights, of a sharded one each process its own part, and returns what
    gives the fingerprint of frozen ones once all processes have read; None: it has them.
    """

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    base: str = ""
    read: Read | None = None

    def with_weights(self) -> "RunModel":
        """The same with all its weights, in this process."""
        if self.read is None:
            return self
        finish = self.read(self.model)
        return replace(self, base=finish() if finish else "", read=None)


def run_model(recipe: Recipe, tokenizer: Path, device: torch.device, *, offline: bool) -> RunModel:
    """The model of a recipe, without its weights where they may come later. tokenizer: the folder of a new model's.

    Raises UsageError for rows that it cannot read.
    """
    found = _new(recipe, tokenizer, device) if recipe.model is None else _pretrained(recipe, device, offline=offline)
    if recipe.task != "reward":
        return found
    model, read = with_reward_head(found.model, seed=recipe.seed), found.read
    if read is not None:
        read = partial(_read_with_head, read=read, seed=recipe.seed, device=device)
    return replace(found, model=cast("LlamaForCausalLM", model), read=read)


def _read_with_head(model: LlamaForCausalLM, *, read: Read, seed: int, device: torch.device) -> None:
    with torch.random.fork_rng():  # a checkpoint of a language model has no such head, which is then drawn
        read(model)
    first_head(model, seed=seed, device=device)


def _new(recipe: Recipe, folder: Path, device: torch.device) -> RunModel:
    tokenizer = load_tokenizer(folder)
    model = LlamaForCausalLM.without_weights(config_of(recipe.shape, tokenizer, length=recipe.length))
    return RunModel(model, tokenizer, read=partial(first_weights, seed=recipe.seed, device=device))


def _pretrained(recipe: Recipe, device: torch.device, *, offline: bool) -> RunModel:
    assert recipe.model is not None
    method, lora, seed = METHODS[recipe.method], recipe.lora, recipe.seed
    # Blocks are no parameters, which processes would share: each has all of them.
    later = None if method.is_quantized else unread(recipe.model, dtype="float32", device=device, offline=offline)
    if later is not None:
        model, tokenizer, read = later
        _check(recipe, model)
        if method.is_adapter:
            read = adapt_unread(model, lora, read, seed=seed, device=device)
        return RunModel(model, tokenizer, read=read)
    loaded = load_pretrained(recipe.model, dtype="float32", device=device, offline=offline)
    _check(recipe, loaded.model)
    base = adapt(loaded.model, lora, block_format=recipe.base_format, seed=seed)
    return RunModel(loaded.model, loaded.tokenizer, base=base)


def _check(recipe: Recipe, model: LlamaForCausalLM) -> None:
    most = model.config.max_position_embeddings
    if recipe.length > most:
        raise UsageError(f"length is {recipe.length}, but {recipe.model} reads at most {most} tokens: lower --length")
    if METHODS[recipe.method].is_adapter:
        check_rank(model, recipe.lora)
    if recipe.merge and METHODS[recipe.method].is_adapter:  # now, and not when all steps are taken
        check_merges(model, recipe.lora)
