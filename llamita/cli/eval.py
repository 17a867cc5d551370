"""`llamita eval`: how good a model is, on a text and on tasks."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita import checks
from llamita.cli import arguments, errors, model, terminal
from llamita.errors import UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from llamita.evaluation.perplexity import TextScore
    from llamita.evaluation.tasks import Task, TaskScore
    from llamita.llm import LLM

NAME = "eval"
HELP = "measure a model: perplexity, bits per byte, and tasks"
EXAMPLES = """\
  llamita eval
  llamita eval path/to/model --text book.txt
  llamita eval path/to/model --tasks add,story_endings,my-cases.jsonl --limit 20
  llamita eval path/to/model --lm-eval hellaswag,arc_easy --limit 100
"""
PERPLEXITY = "perplexity"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, on what."""
    arguments.add_model(parser, is_positional=True)
    parser.add_argument("--text", metavar="FILE", help="perplexity of this text alone (default: cria's, and all tasks)")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help=f"built-in tasks, {PERPLEXITY} or .jsonl files, with commas (default: all)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N cases of each task (default: all)")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a window of text (default: up to 1024)")
    parser.add_argument("--stride", type=int, metavar="N", help="new tokens of a window (default: all of them)")
    parser.add_argument(
        "--lm-eval", metavar="NAMES", help="tasks of lm-eval, the harness, if installed (default: none)"
    )
    parser.add_argument("--shots", type=int, metavar="N", help="examples in lm-eval's prompts (default: the task's)")
    parser.add_argument("--json", action="store_true", help="print the scores as a JSON object")


def run(args: argparse.Namespace) -> int:
    """Load, score, print."""
    _check(args)
    model.wait_asleep()
    with errors.leaving_at_once(), terminal.waiting("loading torch", is_quiet=args.quiet):
        harness = _harness() if args.lm_eval else None
        tasks, text = _tasks(args), _text(args)  # before the model, which may be large
    llm = model.load(args)
    if args.tasks is None:
        tasks = _answerable(tasks, llm)
    found: dict[str, Any] = {"model": llm.name}
    show = _no_show if args.json else _Table()
    if text is not None:
        found["text"] = _text_facts(_scored_text(llm, text, args), args.text)
        show(found["text"])
    for task in tasks:
        found.setdefault("tasks", {})[task.name] = _task_facts(_scored_task(llm, task, args))
        show({"task": task.name, **found["tasks"][task.name]})
    if harness is not None:
        found["lm_eval"] = harness(llm, args.lm_eval.split(","), limit=args.limit, shots=args.shots)
        for name, metrics in found["lm_eval"].items():
            show({"lm_eval": name, **metrics})
    if args.json:
        print(json.dumps(found, indent=2))
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("limit", "length", "stride"):
        if (value := getattr(args, name)) is not None:
            checks.count(f"--{name}", value)
    if args.shots is not None and not args.lm_eval:
        raise UsageError("--shots belongs to --lm-eval: give both")
    from llamita.evaluation.tasks import suite

    if args.model in suite() and not named_path(args.model).exists():
        raise UsageError(f"{args.model} is a task, not a model: write llamita eval --tasks {args.model}")


def _harness() -> "Callable[..., dict[str, Any]]":
    from llamita.bridge import lm_eval

    return lm_eval.evaluate


def _names(args: argparse.Namespace) -> list[str]:
    """What is asked for, in the order in which it is shown."""
    from llamita.evaluation.tasks import suite

    if args.tasks is not None:
        if not (names := [name.strip() for name in args.tasks.split(",") if name.strip()]):
            raise UsageError(f"--tasks is {args.tasks!r}: name tasks, or leave it out for all of them")
        return names
    if args.text is not None:
        return [PERPLEXITY]
    return [] if args.lm_eval else [PERPLEXITY, *suite()]


def _tasks(args: argparse.Namespace) -> "list[Task]":
    from llamita.evaluation.tasks import read_task

    return [read_task(name, limit=args.limit) for name in _names(args) if name != PERPLEXITY]


def _answerable(tasks: "list[Task]", llm: "LLM") -> "list[Task]":
    """The tasks without those that are conversations, where the model was not made for chats."""
    from llamita.tokenizer import chat_formats

    if llm.tokenizer.chat_template or chat_formats.find(llm.tokenizer):
        return tasks
    chats = [task.name for task in tasks if task.cases[0].messages]
    if chats:
        terminal.note(f"(left out, as {llm.name} has no chat template: {', '.join(chats)})")
    return [task for task in tasks if task.name not in chats]


def _text(args: argparse.Namespace) -> str | None:
    """The text to score, or None where no perplexity is asked for."""
    from llamita.files.disk import read_text

    if PERPLEXITY not in _names(args) and args.text is None:
        return None
    return read_text(named_path(args.text) if args.text else Path(str(files("llamita"))) / "cria/held_out.txt")


def _scored_text(llm: "LLM", text: str, args: argparse.Namespace) -> "TextScore":
    from llamita.evaluation.perplexity import LENGTH, score_text

    length = min(llm.context_length, LENGTH) if args.length is None else args.length
    if length > llm.context_length:
        raise UsageError(f"--length is {length}: the model reads at most {llm.context_length} tokens")
    with _progress("the text", args) as progress:
        return score_text(llm.model, llm.tokenizer, text, length=length, stride=args.stride, progress=progress)


def _scored_task(llm: "LLM", task: "Task", args: argparse.Namespace) -> "TaskScore":
    from llamita.evaluation.score import score_task

    with _progress(task.name, args) as progress:
        return score_task(llm, task, progress=progress)


@contextmanager
def _progress(what: str, args: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """A status line on a terminal, which says how far the scoring of something is."""
    with terminal.waiting(f"scoring {what}", is_quiet=args.quiet) as say:
        yield lambda done, total: say(f"scoring {what}: {done} of {total}")


def _text_facts(score: "TextScore", path: str | None) -> dict[str, Any]:
    ratios = {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    return {"name": path or "cria's held-out text", **ratios, "tokens": score.tokens, "bytes": score.bytes}


def _task_facts(score: "TaskScore") -> dict[str, Any]:
    facts = {"accuracy": score.accuracy, "standard_error": score.standard_error, **asdict(score)}
    if score.right_per_byte is not None:
        facts["accuracy_per_byte"] = score.right_per_byte / score.cases
    return {name: value for name, value in facts.items() if name != "name" and value is not None}


def _no_show(facts: dict[str, Any]) -> None:
    """Print nothing: JSON comes as one object in the end."""


class _Table:
    """Prints a line for each score as it comes, and the header of the tasks before the first of them."""

    def __init__(self) -> None:
        self._has_header = False

    def __call__(self, facts: dict[str, Any]) -> None:
        """Print the line of some facts."""
        if "perplexity" in facts:
            print(
                f"{facts['name']}: perplexity {facts['perplexity']:.4f}, {facts['bits_per_byte']:.4f} bits per byte, "
                f"{facts['tokens']:,} tokens, {facts['bytes']:,} bytes",
                flush=True,
            )
        elif "lm_eval" in facts:
            values = {name: value for name, value in facts.items() if isinstance(value, float)}
            print(f"{facts['lm_eval']}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        else:
            self._task(facts)

    def _task(self, facts: dict[str, Any]) -> None:
        if not self._has_header:
            print(f"{'task':<16}{'right':>8}{'± error':>9}{'cases':>7}  rule", flush=True)
            self._has_header = True
        per_byte = f", {facts['accuracy_per_byte']:.1%} per byte" if "accuracy_per_byte" in facts else ""
        rates = f"{facts['accuracy']:>8.1%}{facts['standard_error']:>9.1%}{facts['cases']:>7}"
        print(f"{facts['task']:<16}{rates}  {facts['rule']}{per_byte}", flush=True)
