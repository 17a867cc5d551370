"""Runs on a dataset that has no end: what of it is read at the start, and what follows."""

from collections.abc import Iterator
from itertools import islice

from llamita.data.cleaning import clean, parsed_steps
from llamita.data.endless import Windows, windows
from llamita.data.packing import Rows, pack, parts
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.protocol import Tokenizer
from llamita.train.recipe import Recipe
from llamita.train.tasks import TOKEN_TASKS, Task


def first_records(recipe: Recipe, *, offline: bool) -> list[Record]:
    """The records of the first window. Raises UsageError for a run without an end, and for an empty dataset."""
    if recipe.steps is None:
        raise UsageError(f"{recipe.data[0]} has no end, and neither has the run: give --steps")
    if first := next(windows(recipe.data, offline=offline), None):
        return first
    raise UsageError(f"{recipe.data[0]} has no text to train on: give another dataset")


def all_windows(recipe: Recipe, task: Task, first: Rows, tokenizer: Tokenizer, *, offline: bool) -> Windows:
    """The rows of the first window, without those held out, and of all that follow.

    Raises UsageError for a task that needs all of its data.
    """
    if recipe.task not in TOKEN_TASKS:
        raise UsageError(f"{recipe.data[0]} has no end, and {recipe.task} needs all of its data: give rows for the *")

    def read() -> Iterator[Rows]:
        yield first
        for records in islice(windows(recipe.data, offline=offline), 1, None):
            found = task.documents(clean(records, parsed_steps(recipe.clean))[0], tokenizer)
            yield pack(parts(found, recipe.length), recipe.length)

    return Windows(read, seed=recipe.seed)
