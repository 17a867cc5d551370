"""The memory of one process of several before any is started: steps on fake tensors, in a group that sends nothing.

The steps are those of `llamita.train.loop`, on the shards, stages and messages of that process.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from multiprocessing import get_context
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llamita.adapters.lora import add_lora
from llamita.config import LlamaConfig
from llamita.data.loader import Batch
from llamita.errors import LlamitaError
from llamita.model.llama import LlamaForCausalLM
from llamita.model.loading import put
from llamita.parallel.mesh import DIMS
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import local
from llamita.parallel.stages import layers_of
from llamita.parallel.tensor import check_sizes, sharded_loss
from llamita.train import optim, savings
from llamita.train.loop import backward, gradients_of
from llamita.train.memory import Shapes, check_known
from llamita.train.method import METHODS
from llamita.train.recipe import Recipe
from llamita.train.run import Run, check_ranks, start


@dataclass(frozen=True)
class RankEstimate:
    """Bytes of tensors in a step of one process. parameters: numbers of the whole model. peak: the most at once.

    weights, gradients, optimizer: this process's parts.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    peak: int

    @property
    def parts(self) -> dict[str, int]:
        """What the peak is made of."""
        known = {"weights": self.weights, "gradients": self.gradients, "optimizer state": self.optimizer}
        return {**known, "activations, gathered weights, messages and loss": self.peak - sum(known.values())}


def estimate_ranks(
    config: LlamaConfig, recipe: Recipe, processes: int, *, others: Sequence[Recipe] = (), device: str = "cpu"
) -> list[RankEstimate | None]:
    """The memory of the process that takes the most of several, as `memory.estimate` says that of a single one.

    With stages that is one of the first stage, which has the embedding and most micro-batches, or of the last, which
    has the head and the loss. others: recipes that share the work alike, of which that process is estimated too; None
    for one that is refused. Raises what `memory.estimate` does, and UsageError where they cannot share the work.
    """
    check_known(recipe)
    recipe.degrees.sizes(processes)
    ranks = sorted({0, processes - processes // recipe.pp})  # the first process of the last stage
    # Each in a process of its own: torch keeps what it has planned for a mesh, and takes it for that of another rank.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:

        def asked(recipes: Sequence[Recipe], rank: int) -> list[RankEstimate | None]:
            return pool.submit(estimates_of, config, recipes, processes, rank, device=device).result()

        if len(ranks) == 1:
            return asked([recipe, *others], 0)
        peaks = {rank: found.peak for rank in ranks for found in asked([recipe], rank) if found is not None}
        return asked([recipe, *others], max(peaks, key=lambda rank: peaks[rank]))


def estimates_of(
    config: LlamaConfig, recipes: Sequence[Recipe], processes: int, rank: int, *, device: str = "cpu"
) -> list[RankEstimate | None]:
    """The same of one rank, in this process, which can ask for no other one afterwards."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    found = list[RankEstimate | None]()
    with _pretended(recipes[0], processes, rank) as mesh:
        for recipe in recipes:
            try:
                found.append(_estimate(config, recipe, mesh, torch.device(device)))
            except LlamitaError:
                if not found:
                    raise
                found.append(None)
    return found


@contextmanager
def _pretended(recipe: Recipe, processes: int, rank: int) -> Iterator[DeviceMesh]:
    """A mesh as this process would have it, whose messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers torch's group that sends nothing

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        yield init_device_mesh("cpu", recipe.degrees.sizes(processes), mesh_dim_names=DIMS)
    finally:
        distributed.destroy_process_group()


def _estimate(config: LlamaConfig, recipe: Recipe, mesh: DeviceMesh, device: torch.device) -> RankEstimate:
    from torch._subclasses.fake_tensor import FakeTensorMode  # here, as it loads torch's compiler

    live, fake, ranks = Shapes(), FakeTensorMode(allow_non_fake_inputs=True), DataRanks(mesh)
    check_sizes(config, recipe.tp)
    layers_of(config.num_hidden_layers, recipe.stages)
    check_ranks(recipe, ranks)
    recipe, model = _with_few_rows(recipe, ranks), _model(config, recipe)
    parameters = model.num_parameters()
    savings.prepare(model, recipe, processes=mesh.size(), device=device)

    def read(model: LlamaForCausalLM) -> None:
        with fake, live:
            _give_weights(model, device)

    run = start(recipe, model, Nothing(), processes=mesh, read=read)
    weights = live.now
    with fake, live:
        take_step(run, recipe)  # makes the optimizer's state, and buffers of messages
        live.forget_peak()
        gradients = take_step(run, recipe)
    states = [state for optimizer in run.optimizers for state in optimizer.state.values()]
    optimizer = sum(local(one).nbytes for state in states for one in state.values())
    return RankEstimate(parameters, weights, gradients, optimizer, live.peak)


def _with_few_rows(recipe: Recipe, ranks: DataRanks) -> Recipe:
    """The recipe of two micro-batches: the third takes what the second did. Of stages several are under way."""
    if recipe.pp > 1:
        return recipe
    rows = min(recipe.rows, 2 * recipe.micro_rows * ranks.size)
    return replace(recipe, batch_tokens=rows * recipe.length)


def _model(config: LlamaConfig, recipe: Recipe) -> LlamaForCausalLM:
    """The whole model without weights, with its adapter."""
    model = LlamaForCausalLM.without_weights(config)
    if METHODS[recipe.method].is_adapter:
        add_lora(model, recipe.lora)
    return model


class Nothing:
    """A source of no rows."""

    position, fingerprint = 0, ""

    def __len__(self) -> int:
        return 0

    def next(self, count: int) -> Batch:
        """Nothing is read: the rows of a step are zeros."""
        raise NotImplementedError


@torch.no_grad()
def _give_weights(model: LlamaForCausalLM, device: torch.device) -> None:
    """Give a model on the meta device this process's part of fake weights."""
    for name, empty in list(model.named_parameters()):
        whole = torch.empty(empty.shape, dtype=empty.dtype, device=device)
        put(model, name, model.fit(whole, empty, dtype=empty.dtype, device=device, copies=True))
    model.complete(device)


def take_step(run: Run, recipe: Recipe) -> int:
    """Take a step of rows of zeros, with all that a step does; returns the bytes of its gradients."""
    gradients = gradients_of(run, recipe)
    rows: list[Any] = [torch.zeros(recipe.rows, recipe.length, dtype=torch.long) for _ in range(3)]
    with sharded_loss(run.model):
        backward(run, recipe.training_task(), Batch(*rows), recipe, gradients)
    size = sum(local(weight.grad).nbytes for weight in run.model.parameters() if weight.grad is not None)
    gradients.clip(recipe.clip or inf)
    optim.step(run.optimizers)
    return size
