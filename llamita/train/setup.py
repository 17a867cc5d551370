"""How sessions begin: a recipe and a folder become a run, at its first step or at its last checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from llamita.checkpoint.load import find
from llamita.config import LlamaConfig
from llamita.data.endless import Windows, is_endless
from llamita.data.loader import Loader
from llamita.errors import BrokenFileError, UnsupportedError, UsageError
from llamita.model.files import chosen_device
from llamita.parallel import mesh
from llamita.parallel.ranks import DataRanks
from llamita.parallel.stages import layers_of
from llamita.parallel.tensor import check_sizes
from llamita.plans.invariant import invariant
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.train import train_tokenizer
from llamita.train import endless, savings, state
from llamita.train.measure import Deadline, resolved
from llamita.train.method import METHODS
from llamita.train.recipe import Recipe
from llamita.train.recipe_file import make_recipe, read_recipe
from llamita.train.reference import with_reference
from llamita.train.run import Run, check_ranks, start
from llamita.train.run_model import RunModel, run_model
from llamita.train.run_rows import RunRows, records_of, run_rows
from llamita.train.session import INSIDE, RECIPE, Session
from llamita.train.shapes import config_of
from llamita.train.tasks import Task

NEW, TOKENIZER = "new", "tokenizer"  # a tokenizer that the run trains, and its folder
SAMPLED_STEPS = 40  # of a run whose steps cannot be tried before, as the model writes in them
# What a resumed run cannot change: it would be another run, or its checkpoint would not fit.
FIXED = (
    "data", "clean",
    "task", "method", "rank", "alpha", "targets", "rslora", "base_format", "loss", "beta", "label_smoothing",
    "reference_free", "reward", "group", "max_tokens", "kl", "rollouts", "model", "shape", "tokenizer",
    "vocab_size", "length", "optimizer", "rates", "seed", "held_out", "precision", "weights",
)  # fmt: skip


def begin(
    recipe: Recipe, folder: Path, *, device: str = "auto", offline: bool = False, processes: DeviceMesh | None = None
) -> Session:
    """A session that starts from the first step. Raises UsageError where data and model do not fit each other.

    processes: those that train together; each calls this with the same arguments.
    """
    if recipe.model is None and recipe.tokenizer == NEW:
        mesh.from_first(lambda: _train_tokenizer(recipe, folder / INSIDE / TOKENIZER, offline=offline))
    parts = _prepare(recipe, folder, processes, device=device, offline=offline)
    torch.manual_seed(recipe.seed)
    run = _started(parts)
    decided = _decided(parts, run)
    run.steps = decided.steps or 0
    session = _session(replace(parts, recipe=decided), run, folder)
    session.deadline = Deadline(recipe.minutes, run.steps) if recipe.steps is None else None
    return session


def resume(
    recipe: Recipe, folder: Path, *, device: str = "auto", offline: bool = False, processes: DeviceMesh | None = None
) -> Session:
    """A session that goes on from the latest checkpoint in its folder; the recipe is that of `resumed_recipe`.

    The number of processes may be another than before.
    Raises UsageError where the run has taken more steps than the recipe has, and what `state.restore` raises.
    """
    mesh.from_first(lambda: state.newest(folder / INSIDE))
    parts = _prepare(recipe, folder, processes, device=device, offline=offline)
    session = _session(parts, _started(parts), folder)
    if state.restore(session.run, folder / INSIDE) > session.run.steps:
        raise UsageError(f"steps is {session.run.steps}, but the run has taken {session.run.step}: raise --steps")
    return session


def resumed_recipe(folder: Path, changes: dict[str, object]) -> Recipe:
    """The recipe of the run in a folder, with some settings changed.

    Raises UsageError where there is no run, or for a setting that cannot change.
    """
    path = folder / INSIDE / RECIPE
    if not path.is_file():
        raise UsageError(f"{folder} has no run to resume: leave --resume out to begin one, or check the folder")
    values = read_recipe(path)
    if missing := [name for name in (*FIXED, "steps") if name not in values and name != "model"]:
        raise BrokenFileError(
            f"{path} has no {missing[0]}, as it is cut or of another version: add the line that the run began with"
        )
    recipe = make_recipe(values, source=str(path))
    _check_changes(recipe, folder, changes)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def _check_changes(recipe: Recipe, folder: Path, changes: dict[str, object]) -> None:
    if "minutes" in changes:
        raise UsageError(
            f"the minutes of a run are {recipe.steps} steps once it has begun: give --steps to change them"
        )
    for name in FIXED:
        if name in changes and changes[name] != getattr(recipe, name):
            raise UsageError(
                f"{name} of the run in {folder} is {getattr(recipe, name)!r} and cannot become {changes[name]!r}: "
                "leave it out to resume, or begin in another folder"
            )


def sizes(recipe: Recipe, *, offline: bool = False) -> tuple[LlamaConfig, RunRows]:
    """The model's config and the rows of a recipe: all but weights.

    Raises UnsupportedError for a model that is no folder of Hugging Face, or whose tokenizer is yet to be trained.
    """
    if recipe.model is None and recipe.tokenizer == NEW:
        raise UnsupportedError("--dry-run needs a tokenizer that is there, and trains none: name one with --tokenizer")
    source = find(recipe.tokenizer if recipe.model is None else recipe.model, offline=offline)
    if not source.is_dir():
        raise UnsupportedError(f"--dry-run reads folders with a config.json, not {source}: leave it out")
    tokenizer = load_tokenizer(source)
    if recipe.model is None:
        config = config_of(recipe.shape, tokenizer, length=recipe.length)
    else:
        config = LlamaConfig.from_pretrained(source)
    return config, run_rows(recipe, tokenizer, offline=offline)


@dataclass(frozen=True)
class _Parts:
    """What a run is made of. recipe: with the rate of its model. windows: of endless data."""

    recipe: Recipe
    processes: DeviceMesh | None
    found: RunModel
    rows: RunRows
    windows: Windows | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.rows.task


def _train_tokenizer(recipe: Recipe, folder: Path, *, offline: bool) -> None:
    """Train a tokenizer on the data; a resumed or rewound run has it already."""
    if not (folder / "tokenizer.json").exists():
        texts = (text for record in records_of(recipe, offline=offline)[0] for text in record.texts)
        train_tokenizer(texts, folder, vocab_size=recipe.vocab_size, max_length=recipe.length)


def _prepare(recipe: Recipe, folder: Path, processes: DeviceMesh | None, *, device: str, offline: bool) -> _Parts:
    """The parts of a run, once every process has its own."""
    ranks = DataRanks(processes)

    def make() -> _Parts:
        check_ranks(recipe, ranks)
        on = chosen_device(device)
        found = _model(recipe, folder, on, offline=offline)
        rows = run_rows(recipe, found.tokenizer, offline=offline)
        known = rows.recipe.with_rate(found.model.config.hidden_size)
        if processes is None or processes.size() == 1:  # of several, each reads its own part once they share the model
            found = found.with_weights()
        if rows.task.samples:
            _check_sampling(known, processes)
            if known.rollouts == "exact":
                invariant(found.model)  # before other plans, which then keep to what goes with it
        savings.prepare(found.model, recipe, processes=ranks.size * recipe.shared, device=on)
        return _Parts(known, processes, found, rows, _windows(known, rows, found.tokenizer, offline=offline))

    return mesh.together(make)


def _model(recipe: Recipe, folder: Path, device: torch.device, *, offline: bool) -> RunModel:
    """The model of a run, of sizes that its processes can share."""
    own = folder / INSIDE / TOKENIZER
    at = own if recipe.model is not None or recipe.tokenizer == NEW else find(recipe.tokenizer, offline=offline)
    found = run_model(recipe, at, device, offline=offline)
    check_sizes(found.model.config, recipe.tp)
    layers_of(found.model.config.num_hidden_layers, recipe.stages)
    return found


def _windows(recipe: Recipe, rows: RunRows, tokenizer: Tokenizer, *, offline: bool) -> Windows | None:
    if not is_endless(recipe.data):
        return None
    return endless.all_windows(recipe, rows.task, rows.trained, tokenizer, offline=offline)


def _check_sampling(recipe: Recipe, processes: DeviceMesh | None) -> None:
    if processes is not None and processes.size() > 1:
        raise UsageError("grpo samples in one process: start it without torchrun")
    if recipe.kl and not METHODS[recipe.method].is_adapter:
        raise UsageError(f"kl is {recipe.kl}, and only an adapter keeps its base: take --method lora, or --kl 0")
    if recipe.rollouts == "exact" and recipe.precision == "bf16":
        raise UsageError("exact rollouts are sampled in fp32: leave --precision out, or take --rollouts plain")


def _decided(parts: _Parts, run: Run) -> Recipe:
    """The recipe with threads, precision and steps: measured on all ranks at once, by steps of the run itself."""
    recipe = _untried(parts.recipe, parts.task)
    return replace(recipe, steps=recipe.steps or SAMPLED_STEPS) if parts.task.samples else resolved(recipe, run)


def _untried(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with what is not measured although it is open: threads and precision of exact or sampled runs.

    What is measured may differ from run to run, and would change the bits; what is sampled cannot be tried.
    """
    if not (recipe.exact_scaling or task.samples):
        return recipe
    precision = "fp32" if recipe.precision == "auto" else recipe.precision
    return replace(recipe, threads=recipe.threads or 1, precision=precision)


def _started(parts: _Parts) -> Run:
    """The run at its first step; what its recipe leaves open may then be measured."""
    recipe, found = _untried(parts.recipe, parts.task), parts.found
    loader = parts.windows or Loader(parts.rows.trained, seed=recipe.seed)
    return start(recipe, found.model, loader, processes=parts.processes, base=found.base, read=found.read)


def _session(parts: _Parts, run: Run, folder: Path) -> Session:
    rows, apart = parts.rows.trained, parts.rows.held_out
    if parts.task.needs_reference:
        rows, apart = (with_reference(some, run, parts.recipe) for some in (rows, apart))
        run.loader = Loader(rows, seed=parts.recipe.seed)
    run.task = parts.task
    return Session(parts.recipe, run, apart, parts.found.tokenizer, folder, cleaned=parts.rows.cleaned)
