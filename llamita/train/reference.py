"""The reference model of preference training: the model at the start, whose log-probabilities are taken once."""

from dataclasses import replace

import torch

from llamita.data.loader import take
from llamita.data.packing import Rows
from llamita.train.loop import autocast
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.tasks.log_probs import log_probs


@torch.no_grad()
def with_reference(rows: Rows, run: Run, recipe: Recipe) -> Rows:
    """The rows with the log-probabilities of their targets by a run's model as it is, without dropout.

    An adapter adds nothing at the start, so a new adapter's model is its base. Every rank computes all rows.
    """
    found = []
    with run.without_dropout():
        for first in range(0, len(rows), recipe.micro_rows):
            index = torch.arange(first, min(first + recipe.micro_rows, len(rows)), device="cpu")
            with autocast(recipe.precision, run.device):
                found.append(run.loss(log_probs, take(rows, index)).cpu())
    return replace(rows, reference=torch.cat(found) if found else None)
