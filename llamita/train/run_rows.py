"""The rows of a run: its records are read, cleaned, cut and packed, and some are held out."""

from dataclasses import dataclass, replace

from llamita.data.built_in import read_data
from llamita.data.cleaning import clean, parsed_steps
from llamita.data.endless import is_endless
from llamita.data.loader import held_out
from llamita.data.packing import Rows, pack, parts
from llamita.data.records import Record
from llamita.tokenizer.protocol import Tokenizer
from llamita.train import endless
from llamita.train.recipe import Recipe
from llamita.train.tasks import Task, task_of


@dataclass(frozen=True)
class RunRows:
    """The rows of a recipe whose task is decided: those to train on, and those held out.

    cleaned: how many records each step of cleaning has dropped or changed.
    """

    recipe: Recipe
    task: Task
    trained: Rows
    held_out: Rows
    cleaned: dict[str, int]


def run_rows(recipe: Recipe, tokenizer: Tokenizer, *, offline: bool) -> RunRows:
    """The rows of a recipe, whose task may be open."""
    records, cleaned = records_of(recipe, offline=offline)
    recipe = replace(recipe, task=task_of(records, loss=recipe.loss) if recipe.task == "auto" else recipe.task)
    # Cut first, so that a part of a single long text can be held out too.
    task = recipe.training_task()
    documents = parts(task.documents(records, tokenizer), recipe.length)
    apart = held_out(len(documents), share=recipe.held_out, seed=recipe.seed)
    trained = [document for number, document in enumerate(documents) if number not in apart]
    measured = [document for number, document in enumerate(documents) if number in apart]
    return RunRows(recipe, task, pack(trained, recipe.length), pack(measured, recipe.length), cleaned)


def records_of(recipe: Recipe, *, offline: bool) -> tuple[list[Record], dict[str, int]]:
    """The records of the data after cleaning, of endless data the first, and how many each step has changed."""
    is_all = not is_endless(recipe.data)
    found = read_data(recipe.data, offline=offline) if is_all else endless.first_records(recipe, offline=offline)
    return clean(found, parsed_steps(recipe.clean))
