"""The history of a run's recipe: which settings held from which step on, so that its steps can be taken again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import explained, read_text, write_text
from llamita.train.recipe import Recipe
from llamita.train.recipe_file import make_recipe

FILE = "history.jsonl"  # a line for each change: {"step": steps taken before, setting: value, ...}


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe, and how many steps had been taken when it began to hold."""

    step: int
    recipe: Recipe


def read_history(folder: Path) -> list[Entry]:
    """The entries of a run, in order; none where the run has no history. Raises BrokenFileError for a damaged one."""
    path, entries, values = folder / FILE, list[Entry](), dict[str, Any]()
    for line in read_text(path).splitlines() if path.exists() else ():
        try:
            changes = dict(json.loads(line))
            step = int(changes.pop("step"))
        except (ValueError, TypeError, KeyError) as error:
            raise BrokenFileError(
                f"{path} is damaged: remove it to go on with the run; its steps so far cannot be taken again then"
            ) from error
        values |= changes
        given = {name: value for name, value in values.items() if value is not None}
        entries.append(Entry(step, make_recipe(given, source=str(path))))
    return entries


def note(folder: Path, step: int, recipe: Recipe) -> None:
    """Write down that a recipe holds from a step on. Entries after that step are forgotten: they are taken again."""
    past = [entry for entry in read_history(folder) if entry.step <= step]
    if past and past[-1].recipe == recipe:
        entries = past
    else:
        entries = [*(entry for entry in past if entry.step < step), Entry(step, recipe)]
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, "".join(_lines(entries)))


def recipe_at(entries: Sequence[Entry], step: int) -> Recipe:
    """The recipe by which the step after `step` was taken. Raises UsageError for one before the history begins."""
    if found := next((entry.recipe for entry in reversed(entries) if entry.step <= step), None):
        return found
    first = min((entry.step for entry in entries), default=0)
    raise UsageError(f"the run's history begins after step {first}, so no step before can be taken again")


def changes_between(entries: Sequence[Entry], start: int, stop: int) -> list[int]:
    """The steps in between at which the recipe changed."""
    return [entry.step for entry in entries if start < entry.step < stop]


def _lines(entries: Sequence[Entry]) -> list[str]:
    before, lines = dict[str, Any](), list[str]()
    for entry in entries:
        now = asdict(entry.recipe)
        changed = {name: value for name, value in now.items() if name not in before or before[name] != value}
        lines.append(json.dumps({"step": entry.step, **changed}) + "\n")
        before = now
    return lines
