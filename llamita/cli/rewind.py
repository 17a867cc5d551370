"""`llamita train rewind`: a run as it was after one of its steps."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llamita.cli import ranks, terminal
from llamita.errors import UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.train.metrics import Metrics

WORD = "rewind"
TAKEN = {"output", "step", "device", "offline", "quiet", "debug"}  # the options that it does something with


def is_meant(args: argparse.Namespace) -> bool:
    """Whether `llamita train` is to rewind. Raises UsageError for --step without the word."""
    if args.data[:1] == [WORD]:
        return True
    if args.step is not None:
        raise UsageError("--step belongs to llamita train rewind: the number of steps to take is --steps")
    return False


def run(args: argparse.Namespace, processes: "DeviceMesh | None", *, default: Path) -> int:
    """Write the run after a step to a folder of its own. default: the run that is meant without -o."""
    from llamita.parallel import mesh
    from llamita.train import state
    from llamita.train.rewind import rewind
    from llamita.train.session import INSIDE

    source = _source(args, default)
    target = source.with_name(f"{source.name}-step-{args.step}")
    if not source.is_dir():
        raise UsageError(f"there is no run in {source}: give its folder with -o")

    def show(metrics: "Metrics") -> None:
        if not args.quiet and metrics.step % 100 == 0:
            terminal.note(f"step {metrics.step} of {args.step}: loss {metrics.loss:.3f}, as logged")

    lock = state.locked(source / INSIDE)
    mesh.from_first(lock.__enter__)
    try:
        rewind(
            source, target, args.step,
            observer=show, device=args.device, offline=args.offline, processes=processes,
        )  # fmt: skip
    finally:
        mesh.from_first(lambda: lock.__exit__(None, None, None))
    if args.quiet:
        print(target)
    else:
        here = f"{ranks.command()} train --resume -o {target}"
        terminal.note(f"wrote the model and the checkpoint of step {args.step} to {target}: {here} goes on from there")
    return 0


def _source(args: argparse.Namespace, default: Path) -> Path:
    """The folder of the run that is meant. Raises UsageError for what makes no sense here."""
    if len(args.data) > 1:
        raise UsageError(f"rewind takes no files, not {args.data[1]}: name the run's folder with -o")
    if args.step is None:
        raise UsageError("rewind needs a step: llamita train rewind --step N -o FOLDER")
    if others := sorted(args.given - TAKEN):
        raise UsageError(f"rewind does nothing with --{others[0].replace('_', '-')}: the run has its recipe")
    return output_folder(args.output) or default


def output_folder(name: str | None) -> Path | None:
    """The folder that -o names, None without -o. Raises UsageError for what is no name."""
    if name is not None and name.strip() in ("", "-"):
        raise UsageError(f"the output is {name!r}: name a folder")
    return None if name is None else named_path(name)
