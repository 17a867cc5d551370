"""What --dry-run says of one process of several, next to what such processes then take."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch._dynamo  # what the optimizers and the schedules import, before the processes part
import torch.distributed.pipelining

from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.mesh import arranged
from llamita.train import savings
from llamita.train.live_tensors import LiveTensors
from llamita.train.rank_memory import Nothing, estimates_of, take_step
from llamita.train.recipe import Recipe
from llamita.train.run import start
from llamita.train.shapes import first_weights
from tests.distributed import group
from tests.unit.train.test_memory import CONFIG

RECIPE = Recipe(
    task="pretrain", length=64, batch_tokens=512, micro_rows=2, precision="fp32", optimizer="adamw", steps=2
)
# How many processes, which of them are compared, and what is different in their recipe.
CASES: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "dp_shard": (2, (0,), {"recompute": "full"}),
    "tp": (2, (0,), {"tp": 2, "batch_tokens": 256}),
    "interleaved x dp_shard": (4, (0, 3), {"pp": 2, "pp_schedule": "interleaved", "optimizer": "muon"}),
}


def layers(recipe: Recipe) -> LlamaConfig:
    """As many layers as a recipe needs: one is like another."""
    return CONFIG.replace(num_hidden_layers=2 if recipe.pp == 1 else 4)


def measured(found: Any, recipe: Recipe, count: int) -> int:
    """The peak of the tensors of a real second step."""
    model, live = LlamaForCausalLM.without_weights(layers(recipe)), LiveTensors()
    savings.prepare(model, recipe, processes=count, device=torch.device("cpu"))
    read = partial(first_weights, seed=0, device=torch.device("cpu"))
    with live:
        run = start(recipe, model, Nothing(), processes=arranged(found, recipe.degrees), read=read)
        take_step(run, recipe)
        live.forget_peak()
        take_step(run, recipe)
    return live.peak


def check() -> dict[str, list[float]]:
    """For each case and process, the share of what is taken that is said."""
    found = {}
    for name, (count, ranks, changes) in CASES.items():
        recipe = replace(RECIPE, **changes)
        taken = group.on(count, partial(measured, recipe=recipe, count=count))
        said = [group.answer(*one) for rank in ranks for one in group.start(1, partial(peak, recipe, count, rank))]
        found[name] = [one / taken[rank] for one, rank in zip(said, ranks, strict=True)]
    return found


def peak(recipe: Recipe, count: int, rank: int) -> int:
    """What is said of one process."""
    (found,) = estimates_of(layers(recipe), [recipe], count, rank)
    assert found is not None
    return found.peak
