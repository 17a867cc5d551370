"""Our side of the training bench: a model as `llamita train` prepares it, and its loss."""

from collections.abc import Callable

import torch
from torch import Tensor

from llamita.bench import models
from llamita.config import LlamaConfig
from llamita.data.loader import Batch
from llamita.model.llama import LlamaForCausalLM
from llamita.train import savings
from llamita.train.method import METHODS, adapt
from llamita.train.recipe import Recipe
from llamita.train.tasks.token_loss import token_losses

MODEL = "bench"  # whatever name a recipe with an adapter has for its base


def trained(config: LlamaConfig, method: str) -> tuple[LlamaForCausalLM, Callable[[Tensor, Tensor], Tensor]]:
    """A model with random weights, and the mean loss () of inputs and targets (B, T)."""
    recipe = Recipe(task="pretrain", method=method, model=None if method == "full" else MODEL)
    model = models.to_train(config, method).train()
    if METHODS[method].is_adapter:
        adapt(model, recipe.lora, block_format=recipe.base_format if method == "qlora" else None, seed=0)
    savings.prepare(model, recipe)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        positions = torch.arange(inputs.shape[1]).expand(len(inputs), -1)
        return token_losses(model, Batch(inputs, targets, positions)) / targets.numel()

    return model, loss
