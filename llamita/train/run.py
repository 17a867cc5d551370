"""A run: the model, its optimizers, the loader and the steps done; all that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from llamita.data.loader import Batch, Source
from llamita.errors import BrokenFileError
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel import mesh
from llamita.parallel.context import check_length, pass_of
from llamita.parallel.gradients import TreeReduceScatter, check_tree
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import Pass, shard, sharded_as
from llamita.parallel.tensor import shard_for_training
from llamita.train import optim, savings
from llamita.train.recipe import Recipe
from llamita.train.tasks.task import Task

RNG, DEVICE_RNG = "rng", "rng.cuda"


@dataclass
class Run:
    """What changes while a model is trained. steps: of the whole run. tokens: how many were learned.

    task: None is that of the recipe.
    base: the fingerprint of the frozen weights of an adapter, which checkpoints leave out.
    ranks: those that share each batch. root: the model's passes, which are `sharded` where there are several ranks.
    """

    model: LlamaForCausalLM
    optimizers: list[Optimizer]
    loader: Source
    steps: int
    step: int = 0
    tokens: int = 0
    base: str = ""
    task: Task | None = None
    ranks: DataRanks = field(default_factory=DataRanks)
    sharded: InitVar[Pass | None] = None
    root: Pass = field(init=False)

    def __post_init__(self, sharded: Pass | None) -> None:
        self.root = sharded or Pass(self.model)

    def loss(self, compute: Callable[..., Tensor], batch: Batch) -> Tensor:
        """What `compute(model, batch)` returns, on the model's device; every rank must ask at the same time."""
        return self.root(compute, batch.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained by name, without a tied head."""
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def memory(self) -> dict[str, Tensor]:
        """What the optimizers and the random generator of this rank remember, as tensors by name."""
        named = {
            f"{number}.{index}.{name}": tensor
            for number, optimizer in enumerate(self.optimizers)
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        named[RNG] = torch.get_rng_state()
        if self.device.type == "cuda":
            named[DEVICE_RNG] = torch.cuda.get_rng_state(self.device)
        return named

    def restore(self, weights: dict[str, Tensor], memory: dict[str, Tensor]) -> None:
        """Take back what `weights` and `memory` gave. Raises BrokenFileError where they are another model's."""
        own = self.weights()
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise BrokenFileError("the checkpoint holds another model's weights: start a new run in another folder")
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(sharded_as(own[name], weight))
        memory = dict(memory)
        torch.set_rng_state(memory.pop(RNG).clone())
        if (state := memory.pop(DEVICE_RNG, None)) is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.clone(), self.device)
        for number, optimizer in enumerate(self.optimizers):
            groups = optimizer.state_dict()["param_groups"]
            states: dict[int, dict[str, Tensor]] = {}
            for key, tensor in memory.items():
                of, index, name = key.split(".", 2)
                if int(of) == number:
                    weight = self.owner(key)
                    assert weight is not None
                    # What has the weight's shape is sharded as the weight is; counters and the like are on every rank.
                    own_part = sharded_as(weight, tensor) if tensor.shape == weight.shape else tensor
                    states.setdefault(int(index), {})[name] = own_part.clone()
            optimizer.load_state_dict({"state": states, "param_groups": groups})

    def owner(self, key: str) -> Tensor | None:
        """The weight whose state a tensor of `memory` is; None of the random generators'."""
        if key in (RNG, DEVICE_RNG):
            return None
        number, index, _ = key.split(".", 2)
        groups = self.optimizers[int(number)].param_groups
        return [weight for group in groups for weight in group["params"]][int(index)]


def check_ranks(recipe: Recipe, ranks: DataRanks) -> None:
    """Raise UsageError or UnsupportedError where these ranks cannot train a recipe together."""
    ranks.check_rows(recipe.rows)
    if recipe.exact_scaling:
        check_tree(ranks, rows=recipe.rows, micro_rows=recipe.micro_rows)
    check_length(recipe.length, recipe.cp)
    if ranks.size * recipe.shared > 1:
        optim.check_sharded(recipe.optimizer)


def start(
    recipe: Recipe, model: LlamaForCausalLM, loader: Source, *, processes: DeviceMesh | None = None, base: str = ""
) -> Run:
    """A run at its first step: the model is sharded where there are several processes, and torch takes the threads.

    recipe: with its steps and threads resolved.
    """
    assert recipe.steps is not None and recipe.threads is not None
    torch.set_num_threads(recipe.threads)  # their number decides the order of sums, and so the bits
    ranks = DataRanks(processes)
    root = pass_of(model.train(), ranks.context)
    if (tensor := mesh.dim(processes, "tp")) is not None:
        shard_for_training(model, tensor)
    if ranks.sharding is not None:  # before the optimizers, which hold what the weights become
        reduce_scatter = TreeReduceScatter() if recipe.exact_scaling else None
        shard(root, model.model.layers, ranks.sharding, reduce_scatter=reduce_scatter)
    optimizers = savings.optimizers(model, recipe)
    return Run(model, optimizers, loader, recipe.steps, base=base, ranks=ranks, sharded=root)
