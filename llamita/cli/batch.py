"""`llamita batch`: a file of requests in OpenAI's batch format in, a file of answers out."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llamita import checks
from llamita.cli import errors, served, stdin, terminal
from llamita.cli.errors import INTERRUPTED
from llamita.errors import LlamitaError, UsageError
from llamita.files.disk import explained

if TYPE_CHECKING:
    from llamita.engine.limits import EngineLimits
    from llamita.server.batch.input import BadLine, BatchRequest
    from llamita.server.batch.output import BatchOutput
    from llamita.server.models import ServedModel

NAME = "batch"
HELP = "answer a file of requests, in OpenAI's batch format"
EXAMPLES = """\
  llamita batch in.jsonl out.jsonl
  llamita batch in.jsonl out.jsonl -m org/name --alias gpt-4o-mini
  llamita batch in.jsonl out.jsonl --max-num-seqs 64
  llamita batch in.jsonl out.jsonl --ray --replicas 4
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
    parser.add_argument("--ray", action="store_true", help="answer in processes on Ray Data (default: in this one)")
    parser.add_argument(
        "--replicas", type=int, metavar="N", help="how many, with --ray (default: one on each machine of the cluster)"
    )
    served.add_limits(parser.add_argument_group("limits"))


def run(args: argparse.Namespace) -> int:
    """Check the whole input and the output, load the models, answer; 1 where requests have no answer in the end."""
    served.check(args)
    if args.replicas is not None:
        checks.count("--replicas", args.replicas)
        if not args.ray:
            raise UsageError("--replicas are processes on Ray Data: give --ray too")
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
    """Answer what has no answer, here or on Ray; models are loaded for that alone."""
    if not all(entry.id in output.done.ids for entry in entries):
        (_on_ray if args.ray else _here)(args, entries, output)


def _here(args: argparse.Namespace, entries: "list[BatchRequest | BadLine]", output: "BatchOutput") -> None:
    """Answer in this process."""
    with errors.leaving_at_once():
        from llamita.server import log
        from llamita.server.batch import runner

    log.set_up("warning")
    models = served.load(args, _limits(args))
    try:
        runner.Expected.of(entries, output).check(models)
        with _writing(args, len(entries), output) as note:
            runner.answer_all(entries, models, output, note, has_receipts=args.receipts)
    finally:
        for model in models:
            model.served.close()


def _on_ray(args: argparse.Namespace, entries: "list[BatchRequest | BadLine]", output: "BatchOutput") -> None:
    """Answer in other processes."""
    with errors.leaving_at_once():
        from llamita.server.batch import ray_data

    limits = _limits(args)

    def load(on_machine: int) -> Callable[[], "list[ServedModel]"]:
        return partial(served.load, served.for_replicas(args, on_machine), limits)

    with _writing(args, len(entries), output) as note:
        ray_data.answer_all(
            entries,
            load,
            output,
            note,
            replicas=args.replicas,
            max_num_seqs=args.max_num_seqs,
            num_gpus=int(served.is_on_gpu(args)),
            has_receipts=args.receipts,
        )


def _limits(args: argparse.Namespace) -> "EngineLimits":
    """The limits of each engine, which refuses no request of a batch."""
    from llamita.server.batch import runner

    return served.limits(args, max_num_queued=runner.most_queued(args.max_num_seqs))


@contextmanager
def _writing(args: argparse.Namespace, total: int, output: "BatchOutput") -> Iterator[Callable[[], object]]:
    """Show how far it is; where writing fails, say how far it got."""
    try:
        with _progress(output, total, is_quiet=args.quiet) as note:
            yield note
    except LlamitaError:
        _report(output, total, "stopped")
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
