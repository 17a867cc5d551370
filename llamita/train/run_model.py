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
from llamita.train.method import METHODS, adapt
from llamita.train.recipe import Recipe
from llamita.train.shapes import config_of, first_weights
from llamita.train.tasks.reward import with_reward_head

Read = Callable[[LlamaForCausalLM], None]


@dataclass(frozen=True)
class RunModel:
    """A model with what is trained of it, its tokenizer, and the fingerprint of what is frozen.

    read: gives a model on the meta device its weights, of a sharded one each process its own part; None: it has them.
    """

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    base: str = ""
    read: Read | None = None

    def with_weights(self) -> "RunModel":
        """The same with all its weights, in this process."""
        if self.read is not None:
            self.read(self.model)
        return replace(self, read=None)


def run_model(recipe: Recipe, tokenizer: Path, device: torch.device, *, offline: bool) -> RunModel:
    """The model of a recipe, without its weights where they may come later. tokenizer: the folder of a new model's.

    Raises UsageError for rows that it cannot read.
    """
    found = _new(recipe, tokenizer, device) if recipe.model is None else _pretrained(recipe, device, offline=offline)
    if recipe.task != "reward":
        return found
    found = found.with_weights()
    return replace(found, model=cast("LlamaForCausalLM", with_reward_head(found.model, seed=recipe.seed)))


def _new(recipe: Recipe, folder: Path, device: torch.device) -> RunModel:
    tokenizer = load_tokenizer(folder)
    model = LlamaForCausalLM.without_weights(config_of(recipe.shape, tokenizer, length=recipe.length))
    return RunModel(model, tokenizer, read=partial(first_weights, seed=recipe.seed, device=device))


def _pretrained(recipe: Recipe, device: torch.device, *, offline: bool) -> RunModel:
    assert recipe.model is not None
    method = METHODS[recipe.method]
    later = None if method.is_adapter else unread(recipe.model, dtype="float32", device=device, offline=offline)
    if later is not None:
        model, tokenizer, read = later
        found = RunModel(model, tokenizer, read=read)
    else:
        loaded = load_pretrained(recipe.model, dtype="float32", device=device, offline=offline)
        found = RunModel(loaded.model, loaded.tokenizer)
    most = found.model.config.max_position_embeddings
    if recipe.length > most:
        raise UsageError(f"length is {recipe.length}, but {recipe.model} reads at most {most} tokens: lower --length")
    if not method.is_adapter:
        return found
    block_format = recipe.base_format if method.is_quantized else None
    return replace(found, base=adapt(found.model, recipe.lora, block_format=block_format, seed=recipe.seed))
