"""A training session: from a recipe and a folder to a run, its checkpoints, and a Hugging Face folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from llamita.checkpoint.load import find
from llamita.config import LlamaConfig
from llamita.data.built_in import read_data
from llamita.data.cleaning import clean, parsed_steps
from llamita.data.endless import Windows, is_endless
from llamita.data.loader import Batch, Loader, held_out, take
from llamita.data.packing import Rows, pack, parts
from llamita.data.records import Record
from llamita.errors import BrokenFileError, LlamitaError, UnsupportedError, UsageError
from llamita.files.disk import explained, write_text
from llamita.model.files import chosen_device
from llamita.parallel import mesh
from llamita.parallel.ranks import DataRanks
from llamita.parallel.stages import layers_of
from llamita.parallel.tensor import check_sizes, sharded_loss
from llamita.plans.invariant import invariant
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.save import save_tokenizer
from llamita.tokenizer.train import train_tokenizer
from llamita.train import endless, history, savings, state
from llamita.train.loop import evaluate, train
from llamita.train.measure import Deadline, resolved
from llamita.train.method import METHODS, export_adapter, whole_model
from llamita.train.metrics import Metrics, log
from llamita.train.recipe import Recipe, make_recipe, read_recipe
from llamita.train.reference import with_reference
from llamita.train.run import Run, check_ranks, start
from llamita.train.run_model import RunModel, run_model
from llamita.train.saver import Saver
from llamita.train.shapes import config_of
from llamita.train.tasks import Task, task_of

INSIDE = "training"  # the folder with a run's own files, in the folder of the model
RECIPE, LOG = "recipe.toml", "metrics.jsonl"
NEW, TOKENIZER = "new", "tokenizer"  # a tokenizer that the run trains, and its folder
SAMPLED_STEPS = 40  # of a run whose steps cannot be tried before, as the model writes in them
MEASURED_ROWS = 64  # at most, of held-out rows
# What a resumed run cannot change: it would be another run, or its checkpoint would not fit.
FIXED = (
    "data", "clean",
    "task", "method", "rank", "alpha", "targets", "rslora", "base_format", "loss", "beta", "label_smoothing",
    "reference_free", "reward", "group", "max_tokens", "kl", "rollouts", "model", "shape", "tokenizer",
    "vocab_size", "length", "optimizer", "rates", "seed", "held_out", "precision", "weights",
)  # fmt: skip


@dataclass
class Session:
    """A run with its recipe, the rows held out of it, its tokenizer and its folder; a run of minutes has a deadline.

    cleaned: how many records each step of cleaning has dropped or changed.
    """

    recipe: Recipe
    run: Run
    held_out: Rows
    tokenizer: Tokenizer
    folder: Path
    deadline: Deadline | None = None
    cleaned: dict[str, int] = field(default_factory=dict)

    @property
    def log_path(self) -> Path:
        """The file that has a line of metrics for each step."""
        return self.folder / INSIDE / LOG

    @property
    def written(self) -> tuple[Path | str, Path | None]:
        """The model that the run writes, by its name, and its adapter, if that is what is trained."""
        base = self.recipe.model
        if base is None or not METHODS[self.recipe.method].is_adapter:
            return self.folder, None
        return base, self.folder

    def steps(self, should_stop: Callable[[], bool]) -> Iterator[Metrics]:
        """Take the steps that are left, save now and then and at the end, and log every step."""
        recipe, run = self.recipe, self.run
        batches = self.measured_batches()
        self._note()
        saver = Saver(run, self.folder / INSIDE, keep=recipe.keep_checkpoints)
        with self._log() as write, sharded_loss(run.model), saver:
            for metrics in train(run, recipe, held_out=batches, should_stop=should_stop):
                write(metrics.to_json() + "\n")
                self._keep_time()
                if run.step % recipe.save_every == 0:
                    self._save(saver)
                yield metrics
            self._save(saver)
            with self._explained():
                saver.wait()
        self.export()

    @property
    def task(self) -> Task:
        """The run's task."""
        return self.run.task or self.recipe.training_task()

    def measured_batches(self) -> list[Batch]:
        """The held-out rows that are measured, in batches."""
        count = min(len(self.held_out), MEASURED_ROWS)
        return take(self.held_out, torch.arange(count)).split(self.recipe.micro_rows) if count else []

    def measure(self) -> dict[str, float]:
        """The loss and the task's figures on held-out rows, as the model is now; nothing where none are held out."""
        batches = self.measured_batches()
        if not batches:
            return {}
        with torch.random.fork_rng(devices=[]), sharded_loss(self.run.model):
            loss, figures = evaluate(self.run, self.task, batches, self.recipe.precision)
        return figures if self.task.samples else {"held-out loss": loss, **figures}

    @contextmanager
    def _log(self) -> Iterator[Callable[[str], object]]:
        """What takes the lines of the log: the file, on rank 0."""
        if not mesh.is_first():
            yield lambda line: None
            return
        with explained("write", self.log_path.parent):
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with log(self.log_path, step=self.run.step) as file:
            yield file.write

    def _keep_time(self) -> None:
        if self.deadline is not None and self.run.step < self.run.steps:
            deadline, step = self.deadline, self.run.step
            self.run.steps = mesh.from_first(lambda: deadline.fitting(step))
            if self.run.steps != self.recipe.steps:
                self.recipe = replace(self.recipe, steps=self.run.steps)
                self._note()

    def _note(self) -> None:
        """Write down from which step on the recipe holds, for `rewind`."""
        mesh.from_first(lambda: history.note(self.folder / INSIDE, self.run.step, self.recipe))

    def export(self) -> None:
        """Write the model as a Hugging Face folder, which every verb reads; of an adapter, peft's files of it."""
        mesh.from_first(self._export)

    def _export(self) -> None:
        weights = state.weights(self.folder / INSIDE)  # of the checkpoint, where they are whole
        base, adapter = self.written
        if adapter is None:
            self.run.model.save_pretrained(self.folder, state_dict=weights)
            save_tokenizer(self.tokenizer, self.folder, max_length=self.run.model.config.max_position_embeddings)
        else:
            model = whole_model(self.run.model, self.recipe.lora)
            export_adapter(model, adapter, weights=weights, base=str(base), merge=self.recipe.merge)

    def _save(self, saver: Saver) -> None:
        with self._explained():
            mesh.from_first(lambda: write_text(self.folder / INSIDE / RECIPE, self.recipe.to_toml()))
            saver.save()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say of an error in a save that the run can go on, if it can."""
        try:
            yield
        except LlamitaError as error:
            if not state.has_checkpoint(self.folder / INSIDE):
                raise
            raise type(error)(f"{error}; the last checkpoint is whole, --resume goes on from it") from error


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


def sizes(recipe: Recipe, *, offline: bool = False) -> tuple[Recipe, LlamaConfig, Rows, Rows]:
    """The recipe with its task decided, the model's config, the rows to train on and those held out: all but weights.

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
    recipe, _, rows, apart = _rows(recipe, tokenizer, _records(recipe, offline=offline)[0])
    return recipe, config, rows, apart


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
    return replace(recipe, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Parts:
    """What a run is made of. apart: the rows held out."""

    recipe: Recipe
    processes: DeviceMesh | None
    found: RunModel
    rows: Rows
    apart: Rows
    cleaned: dict[str, int]
    task: Task
    windows: Windows | None = None


def _train_tokenizer(recipe: Recipe, folder: Path, *, offline: bool) -> None:
    """Train a tokenizer on the data; a resumed or rewound run has it already."""
    if not (folder / "tokenizer.json").exists():
        texts = (text for record in _records(recipe, offline=offline)[0] for text in record.texts)
        train_tokenizer(texts, folder, vocab_size=recipe.vocab_size, max_length=recipe.length)


def _prepare(recipe: Recipe, folder: Path, processes: DeviceMesh | None, *, device: str, offline: bool) -> _Parts:
    ranks = DataRanks(processes)

    def make() -> _Parts:
        check_ranks(recipe, ranks)
        on = chosen_device(device)
        own = folder / INSIDE / TOKENIZER
        at = own if recipe.model is not None or recipe.tokenizer == NEW else find(recipe.tokenizer, offline=offline)
        found = run_model(recipe, at, on, offline=offline)
        check_sizes(found.model.config, recipe.tp)
        layers_of(found.model.config.num_hidden_layers, recipe.stages)
        records, cleaned = _records(recipe, offline=offline)
        known, task, rows, apart = _rows(recipe, found.tokenizer, records)
        known = known.with_rate(found.model.config.hidden_size)
        if processes is None or processes.size() == 1:  # of several, each reads its own part once they share the model
            found = found.with_weights()
        if task.samples:
            _check_sampling(known, processes)
            if known.rollouts == "exact":
                invariant(found.model)  # before other plans, which then keep to what goes with it
        savings.prepare(found.model, recipe, processes=ranks.size * recipe.shared, device=on)
        parts = _Parts(known, processes, found, rows, apart, cleaned, task)
        if not is_endless(recipe.data):
            return parts
        return replace(parts, windows=endless.all_windows(known, task, rows, found.tokenizer, offline=offline))

    return mesh.together(make)


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
    loader = parts.windows or Loader(parts.rows, seed=recipe.seed)
    return start(recipe, found.model, loader, processes=parts.processes, base=found.base, read=found.read)


def _session(parts: _Parts, run: Run, folder: Path) -> Session:
    rows, apart = parts.rows, parts.apart
    if parts.task.needs_reference:
        rows, apart = (with_reference(some, run, parts.recipe) for some in (rows, apart))
        run.loader = Loader(rows, seed=parts.recipe.seed)
    run.task = parts.task
    return Session(parts.recipe, run, apart, parts.found.tokenizer, folder, cleaned=parts.cleaned)


def _rows(recipe: Recipe, tokenizer: Tokenizer, records: list[Record]) -> tuple[Recipe, Task, Rows, Rows]:
    """The recipe with its task decided, that task, the rows to train on, and those held out."""
    recipe = replace(recipe, task=task_of(records) if recipe.task == "auto" else recipe.task)
    # Cut first, so that a part of a single long text can be held out too.
    task = recipe.training_task()
    documents = parts(task.documents(records, tokenizer), recipe.length)
    apart = held_out(len(documents), share=recipe.held_out, seed=recipe.seed)
    trained = [document for number, document in enumerate(documents) if number not in apart]
    measured = [document for number, document in enumerate(documents) if number in apart]
    return recipe, task, pack(trained, recipe.length), pack(measured, recipe.length)


def _records(recipe: Recipe, *, offline: bool) -> tuple[list[Record], dict[str, int]]:
    """The records of the data after cleaning, of endless data the first, and how many each step has changed."""
    is_all = not is_endless(recipe.data)
    found = read_data(recipe.data, offline=offline) if is_all else endless.first_records(recipe, offline=offline)
    return clean(found, parsed_steps(recipe.clean))
