"""`llamita batch`: a file of requests in OpenAI's batch format in, a file of answers out."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llamita.cli import served, stdin, terminal
from llamita.cli.errors import INTERRUPTED
from llamita.errors import LlamitaError, UsageError
from llamita.files.disk import explained

if TYPE_CHECKING:
    from llamita.server.batch.input import BadLine, BatchRequest
    from llamita.server.batch.output import BatchOutput
    from llamita.server.models import ServedModel

NAME = "batch"
HELP = "answer a file of requests, in OpenAI's batch format"
EXAMPLES = """\
  llamita batch in.jsonl out.jsonl
  llamita batch in.jsonl out.jsonl -m org/name --alias gpt-4o-mini
  llamita batch in.jsonl out.jsonl --max-num-seqs 64
  llamita batch < in.jsonl > out.jsonl
"""
STREAM = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two files, the models, and how much at once."""
    parser.add_argument("input", nargs="?", default=STREAM, help="requests, one a line; - is stdin (the default)")
    parser.add_argument(
        "output",
        nargs="?",
        default=STREAM,
        help="answers, one a line; a file that has some is continued; - is stdout (the default)",
    )
    served.add_models(parser)
    parser.add_argument(
        "--keep-going", action="store_true", help="answer a line that is no request with an error (default: stop)"
    )
    parser.add_argument("--force", action="store_true", help="start again, and replace what the output has")
    parser.add_argument("--receipts", action="store_true", help="give a receipt with every answer, for llamita replay")
    served.add_limits(parser.add_argument_group("limits"))


def run(args: argparse.Namespace) -> int:
    """Check the whole input and the output, load the models, answer; 1 where requests have no answer in the end."""
    served.check(args)
    entries = _read(args)
    output = _open(args, {entry.id for entry in entries})
    try:
        _answer(args, entries, output)
    except KeyboardInterrupt:
        terminal.restore()
        _report(output, len(entries), "interrupted")
        return INTERRUPTED
    finally:
        output.close()
    is_whole = len(output.done.ids) == len(entries)
    if not (args.quiet and is_whole):
        _report(output, len(entries), "done" if is_whole else "the engine could not answer all")
    return 0 if is_whole else 1


def _read(args: argparse.Namespace) -> "list[BatchRequest | BadLine]":
    """The checked input."""
    from llamita.server.batch.input import read_input

    if args.input == STREAM:
        if not stdin.is_piped():
            raise UsageError("there is no input: give a file, or pipe one in, llamita batch in.jsonl out.jsonl")
        return read_input(sys.stdin.buffer, "stdin", keeps_bad=args.keep_going)
    path = Path(args.input)
    with explained("read", path), path.open("rb") as lines:
        return read_input(lines, args.input, keeps_bad=args.keep_going)


def _open(args: argparse.Namespace, ids: set[str]) -> "BatchOutput":
    """The output, which may have some of the answers."""
    from llamita.server.batch.output import BatchOutput

    if args.output == STREAM:
        stream: BinaryIO = sys.stdout.buffer
        return BatchOutput(stream, Path("stdout"))
    path = Path(args.output)
    if args.input != STREAM and path.exists() and path.samefile(args.input):
        raise UsageError(f"{path} is both input and output: name another output")
    return BatchOutput.open(path, ids, is_new=args.force)


def _answer(args: argparse.Namespace, entries: "list[BatchRequest | BadLine]", output: "BatchOutput") -> None:
    """Answer what has no answer; the models are loaded for that alone."""
    if all(entry.id in output.done.ids for entry in entries):
        return
    from llamita.server import log
    from llamita.server.batch import runner

    log.set_up("warning")
    limits = served.limits(args, max_num_queued=runner.most_queued(args.max_num_seqs))
    models = served.load(args, limits)
    try:
        runner.check_models(entries, models, output)
        _write(args, entries, models, output)
    finally:
        for model in models:
            model.served.close()


def _write(
    args: argparse.Namespace,
    entries: "list[BatchRequest | BadLine]",
    models: "list[ServedModel]",
    output: "BatchOutput",
) -> None:
    """Write the answers; where that fails, say how far it got."""
    from llamita.server.batch import runner

    try:
        with _progress(output, len(entries), is_quiet=args.quiet) as note:
            runner.answer_all(entries, models, output, note, has_receipts=args.receipts)
    except LlamitaError:
        _report(output, len(entries), "stopped")
        raise


@contextmanager
def _progress(output: "BatchOutput", total: int, *, is_quiet: bool) -> Iterator[Callable[[], object]]:
    """A bar on a terminal; what it gives is called when an answer is there."""
    if is_quiet or not terminal.has_color(sys.stderr):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=len(output.done.ids))
        yield lambda: bar.update(task, completed=len(output.done.ids))


def _report(output: "BatchOutput", total: int, state: str) -> None:
    """Say how much is in the output, and how to go on where that is not all."""
    done = output.done
    failed = f", {done.failed} of them with an error" if done.failed else ""
    rest = "" if len(done.ids) == total or not output.is_on_disk else "; the same command goes on from there"
    terminal.note(f"{state}: {len(done.ids)} of {total} requests are in {output.path}{failed}{rest}")
