"""The reference model of preference training: the model at the start, whose log-probabilities are taken once."""

from dataclasses import replace

import torch

from llamita.data.loader import take
from llamita.data.packing import Rows
from llamita.model.llama import LlamaForCausalLM
from llamita.train.loop import autocast
from llamita.train.recipe import Recipe
from llamita.train.tasks.log_probs import log_probs


@torch.no_grad()
def with_reference(rows: Rows, model: LlamaForCausalLM, recipe: Recipe) -> Rows:
    """The rows with the log-probabilities of their targets by the model as it is, without dropout.

    An adapter adds nothing at the start, so a new adapter's model is its base.
    """
    was_training = model.training
    model.eval()
    found = []
    for index in torch.arange(len(rows)).split(recipe.micro_rows):
        with autocast(recipe.precision, model.device):
            found.append(log_probs(model, take(rows, index).to(model.device)).cpu())
    model.train(was_training)
    return replace(rows, reference=torch.cat(found) if found else None)
