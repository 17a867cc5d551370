"""A training session: the steps of a run, with checkpoints and a log in a folder, and the model that it writes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from llamita.data.loader import Batch, take
from llamita.data.packing import Rows
from llamita.errors import LlamitaError
from llamita.files.disk import explained, write_text
from llamita.parallel import mesh
from llamita.parallel.tensor import sharded_loss
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.save import save_tokenizer
from llamita.train import history, state
from llamita.train.loop import evaluate, train
from llamita.train.measure import Deadline
from llamita.train.method import METHODS, export_adapter, whole_model
from llamita.train.metrics import Metrics, log
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.saver import Saver
from llamita.train.tasks import Task

INSIDE = "training"  # the folder with a run's own files, in the folder of the model
RECIPE, LOG = "recipe.toml", "metrics.jsonl"
MEASURED_ROWS = 64  # at most, of held-out rows


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
        return take(self.held_out, torch.arange(count, device="cpu")).split(self.recipe.micro_rows) if count else []

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
