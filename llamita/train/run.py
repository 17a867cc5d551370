"""A run: the model, its optimizers, the loader and the steps done; all that a checkpoint holds."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from llamita.data.loader import Batch, Source
from llamita.errors import BrokenFileError
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel import mesh
from llamita.parallel.context import check_length, pass_of
from llamita.parallel.gradients import TreeReduceScatter, check_tree
from llamita.parallel.pipeline import Pipeline, Stage, check_micro_batches
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import Pass, reshard, shard, sharded_as
from llamita.parallel.tensor import shard_for_training
from llamita.train import optim, savings
from llamita.train.recipe import Recipe
from llamita.train.tasks.task import Task

RNG, DEVICE_RNG = "rng", "rng.cuda"


@dataclass
class Run:
    """What changes while a model is trained. tokens: how many were learned.

    steps: of the whole run, 0 while that is open. task: None is that of the recipe.
    base: the fingerprint of the frozen weights of an adapter, which checkpoints leave out.
    ranks: those that share each batch. root: the model's passes, which are `sharded` where there are several ranks.
    pipeline: where the model has some of several stages; names: those of the trained weights of all stages, numbers:
    for each optimizer, those of the weights here among all that it would have in one process. num_parameters: how many
    numbers all weights are, of which processes may have parts.
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
    pipeline: Pipeline | None = None
    names: Collection[str] | None = None
    numbers: list[list[int]] | None = None
    num_parameters: int = 0
    sharded: InitVar[nn.Module | None] = None
    root: nn.Module = field(init=False)

    def __post_init__(self, sharded: nn.Module | None) -> None:
        self.root = sharded or Pass(self.model)
        self.num_parameters = self.num_parameters or self.model.num_parameters()

    def loss(self, compute: Callable[..., Tensor], batch: Batch) -> Tensor:
        """The tensor that `compute(model, batch)` returns, on the model's device; every rank must ask at the same time.

        Where there are stages it has no gradients.
        """
        batch = batch.to(self.device)
        return self.root(compute, batch) if self.pipeline is None else self.pipeline.measure(compute, batch)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Let passes in this block drop nothing; after it each rank has its shards alone."""
        self.root.eval()  # also what stages have besides the model
        try:
            yield
        finally:
            self.root.train()
            reshard(self.root)

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
            f"{number}.{numbers[index]}.{name}": tensor
            for number, (optimizer, numbers) in enumerate(zip(self.optimizers, self._numbers(), strict=True))
            for index, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        named[RNG] = torch.get_rng_state()
        if self.device.type == "cuda":
            named[DEVICE_RNG] = torch.cuda.get_rng_state(self.device)
        return named

    def restore(self, weights: dict[str, Tensor], memory: dict[str, Tensor]) -> None:
        """Take back what `weights` and `memory` gave, of all stages.

        Raises BrokenFileError where they are another model's.
        """
        own = self.weights()
        names = set(own if self.names is None else self.names)
        if names != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise BrokenFileError("the checkpoint holds another model's weights: start a new run in another folder")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(sharded_as(weight, weights[name]))
        memory = dict(memory)
        torch.set_rng_state(memory.pop(RNG).clone())
        if (state := memory.pop(DEVICE_RNG, None)) is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state.clone(), self.device)
        for number, (optimizer, numbers) in enumerate(zip(self.optimizers, self._numbers(), strict=True)):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self._states(memory, number, numbers), "param_groups": groups})

    def _states(self, memory: dict[str, Tensor], optimizer: int, numbers: list[int]) -> dict[int, dict[str, Tensor]]:
        """What an optimizer remembers of each of its weights here, whose numbers among all these are."""
        indices = {of_all: index for index, of_all in enumerate(numbers)}
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in memory.items():
            of, of_all, name = key.split(".", 2)
            if int(of) == optimizer and (index := indices.get(int(of_all))) is not None:
                weight = self.owner(key)
                assert weight is not None
                # What has the weight's shape is sharded as the weight is; counters and the like are on every rank.
                own_part = sharded_as(weight, tensor) if tensor.shape == weight.shape else tensor
                states.setdefault(index, {})[name] = own_part.clone()
        return states

    def owner(self, key: str) -> Tensor | None:
        """The weight whose state a tensor of `memory` is; None of the random generators', and in another stage."""
        if key in (RNG, DEVICE_RNG):
            return None
        number, of_all, _ = key.split(".", 2)
        return self._owners.get((int(number), int(of_all)))

    @cached_property
    def _owners(self) -> dict[tuple[int, int], Tensor]:
        """The weights of this stage, by the number of their optimizer and their own among all that it would have."""
        return {
            (number, of_all): weight
            for number, (optimizer, numbers) in enumerate(zip(self.optimizers, self._numbers(), strict=True))
            for of_all, weight in zip(numbers, optim.moved_by(optimizer), strict=True)
        }

    def needs(self, key: str) -> bool:
        """Whether this stage reads a tensor of `memory`."""
        return key in (RNG, DEVICE_RNG) or self.owner(key) is not None

    def _numbers(self) -> list[list[int]]:
        """For each optimizer, the numbers of its weights among those of the whole model."""
        if self.numbers is not None:
            return self.numbers
        return [list(range(len(optim.moved_by(one)))) for one in self.optimizers]


def check_ranks(recipe: Recipe, ranks: DataRanks) -> None:
    """Raise UsageError or UnsupportedError where these ranks cannot train a recipe together."""
    ranks.check_rows(recipe.rows)
    if recipe.exact_scaling:
        check_tree(ranks, rows=recipe.rows, micro_rows=recipe.micro_rows)
        optim.check_exact(recipe.optimizer, ranks.size)
    check_length(recipe.length, recipe.cp)
    rows = recipe.rows // ranks.size
    micro_batches = -(-rows // min(rows, recipe.micro_rows))
    check_micro_batches(micro_batches, recipe.pp, recipe.pp_schedule, rows=rows)


def start(
    recipe: Recipe,
    model: LlamaForCausalLM,
    loader: Source,
    *,
    processes: DeviceMesh | None = None,
    base: str = "",
    read: Callable[[LlamaForCausalLM], Callable[[], str] | None] | None = None,
) -> Run:
    """A run at its first step: the model is sharded where there are several processes, and torch takes the threads.

    recipe: steps and threads may be left open, for trial steps of the run. read: gives a model without weights this
    process's part of them, once it is sharded, and returns what gives the fingerprint of those that are frozen.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)  # their number decides the order of sums, and so the bits
    ranks, count = DataRanks(processes), model.num_parameters()
    model.train()
    if (tensor := mesh.dim(processes, "tp")) is not None:
        shard_for_training(model, tensor)
    if processes is not None and mesh.dim(processes, "pp") is not None:
        return _staged(recipe, model, loader, processes, base=base, read=read, num_parameters=count)
    passes = pass_of(model, ranks.context)
    base = _shard([passes], model, ranks, recipe, read) or base
    optimizers = savings.optimizers(model, recipe)
    return Run(
        model, optimizers, loader, recipe.steps or 0, base=base, ranks=ranks, sharded=passes, num_parameters=count
    )


def _staged(
    recipe: Recipe,
    model: LlamaForCausalLM,
    loader: Source,
    processes: DeviceMesh,
    *,
    base: str,
    read: Callable[..., Callable[[], str] | None] | None,
    num_parameters: int,
) -> Run:
    """A run of this process's stages of a model, which is cut here."""
    ranks = DataRanks(processes)
    optimizers = savings.optimizers(model, recipe)  # of the whole model, so that their groups are those of one process
    names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
    pipeline = Pipeline(model, processes, recipe.pp_schedule, stages_each=recipe.stages // recipe.pp)
    base = _shard(pipeline.roots, model, ranks, recipe, read) or base
    numbers = optim.keep_own(optimizers, names, dict(model.named_parameters()))
    return Run(
        model, optimizers, loader, recipe.steps or 0, base=base, ranks=ranks, pipeline=pipeline,
        names=tuple(names.values()), numbers=numbers, sharded=nn.ModuleList(pipeline.roots),
        num_parameters=num_parameters,
    )  # fmt: skip


def _shard(
    roots: Sequence[Pass | Stage],
    model: LlamaForCausalLM,
    ranks: DataRanks,
    recipe: Recipe,
    read: Callable[..., Callable[[], str] | None] | None,
) -> str | None:
    """Shard the weights where several ranks share rows, and read them; then optimizers hold what they have become.

    Returns the fingerprint of those that are frozen, where `read` knows it.
    """
    if ranks.sharding is not None:
        reduce_scatter = TreeReduceScatter() if recipe.exact_scaling else None
        for root in roots:
            layers = cast("LlamaForCausalLM", root.model).model.layers
            shard(root, layers, ranks.sharding, reduce_scatter=reduce_scatter)
    optim.check_sharded(recipe.optimizer, model)
    finish = None if read is None else mesh.together(lambda: read(model))
    return None if finish is None else finish()
