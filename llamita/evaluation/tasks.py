"""Tasks: a file of cases and a rule that says which answers are right; the built-in suite is a folder of such files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from llamita.checks import parsed_json, quoted
from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import named_path, read_text

SUFFIX = ".jsonl"
EXACT, CHOICE = "exact", "choice"  # the rules


@dataclass(frozen=True, slots=True)
class Case:
    """One question. Exact: the greedy answer is `answer`. Choice: the most probable of `choices` is number `answer`.

    Either a prompt that the answer continues, or messages (and tools) that the chat template writes.
    """

    answer: str | int
    prompt: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """Cases under a name; they all have the same rule, `exact` or `choice`."""

    name: str
    rule: str
    cases: Sequence[Case]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How many of a task's cases are right. per_byte: with each choice's log-probability divided by its bytes."""

    name: str
    rule: str
    right: int
    cases: int
    right_per_byte: int | None = None

    @property
    def accuracy(self) -> float:
        """The share that is right, from 0 to 1."""
        return self.right / self.cases

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy, of as many independent cases."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / max(1, self.cases - 1))


def suite() -> list[str]:
    """The names of the built-in tasks."""
    found = (files("llamita") / "evaluation" / "suite").iterdir()
    return sorted(path.name.removesuffix(SUFFIX) for path in found if path.name.endswith(SUFFIX))


def read_task(name: str, *, limit: int | None = None) -> Task:
    """A built-in task by its name, or one of a .jsonl file; of the first `limit` cases.

    Raises UsageError for a name that is none, a file without cases, and a line that is no case.
    """
    if name in suite():
        path = Path(str(files("llamita") / "evaluation" / "suite" / f"{name}{SUFFIX}"))
    elif name.endswith(SUFFIX):
        path = named_path(name)
    else:
        raise UsageError(f"there is no task {quoted(name)}: use {', '.join(suite())}, or a {SUFFIX} file of cases")
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    cases = [_case(line, f"{path}:{number}") for number, line in lines[:limit]]
    if not cases:
        raise UsageError(f"{path} has no case: give one JSON object a line")
    rules = {CHOICE if case.choices else EXACT for case in cases}
    if len(rules) > 1:
        raise UsageError(f"{path} mixes cases with choices and cases without: put them into two files")
    return Task(path.name.removesuffix(SUFFIX), rules.pop(), cases)


def _case(line: str, where: str) -> Case:
    try:
        fields = parsed_json(line)
    except ValueError as error:
        raise BrokenFileError(f"{where} is not valid JSON ({error}): mend or remove the line") from error
    if not isinstance(fields, dict) or fields.keys() - {"prompt", "messages", "tools", "choices", "answer"}:
        raise UsageError(f"{where} holds {quoted(fields)}: a case has prompt or messages, answer, and maybe choices")
    prompt, messages, choices = (fields.get(name) for name in ("prompt", "messages", "choices"))
    if isinstance(prompt, str) == isinstance(messages, list):
        raise UsageError(f"{where} needs either prompt, a string, or messages, a list")
    _check_answer(fields.get("answer"), choices, where)
    return Case(fields["answer"], prompt or "", messages or (), fields.get("tools") or (), choices or ())


def _check_answer(answer: object, choices: object, where: str) -> None:
    if choices is None:
        if not isinstance(answer, str):
            raise UsageError(f"{where} needs answer, the string that is right, or choices")
        return
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise UsageError(f"{where}: choices must be a list of at least two strings")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UsageError(f"{where}: answer must be the number of the right choice, from 0 to {len(choices) - 1}")
