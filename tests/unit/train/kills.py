"""Kill a run with SIGKILL inside a save, at many points, and go on: `python -m tests.unit.train.kills POINTS`.

A process of its own with one thread, so that it may fork: each point costs a fork, not an import of torch. Prints one
JSON line: how many calls a save has, at which the run was killed, and the distinct hashes of the runs that went on.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from llamita.files.disk import read_json
from llamita.train import state
from llamita.train.draft import MANIFEST
from tests.unit.train.tiny import go_on

FIRST, LAST = 2, 3  # steps: of the checkpoint that is there, and of the one that the run dies in


def hashes(checkpoint: Path) -> str:
    """The manifest of a checkpoint, which has the sha256 of weights, optimizer and counters."""
    return json.dumps(read_json(checkpoint / MANIFEST), sort_keys=True)


def in_child(task: Callable[[], None]) -> int:
    """Run a task in a forked process; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def count_calls(folder: Path) -> int:
    """How many calls and returns the save of the last step has."""
    seen = []
    _watched_save(lambda number: seen.append(number))
    go_on(folder, until=LAST)
    sys.setprofile(None)
    return len(seen)


def die_at(folder: Path, number: int) -> None:
    """Train to the last step, and die at a call of its save."""
    _watched_save(lambda seen: os.kill(os.getpid(), signal.SIGKILL) if seen == number else None)
    go_on(folder, until=LAST)


def _watched_save(at: Callable[[int], Any]) -> None:
    """Have the first save call `at` with the number of each call or return inside."""
    save = state.save

    def watched(*args: Any) -> Path:
        numbers = iter(range(10**9))

        def profile(frame: FrameType, event: str, argument: Any) -> None:
            at(next(numbers))

        state.save = save
        sys.setprofile(profile)
        try:
            return save(*args)
        finally:
            sys.setprofile(None)

    state.save = watched


def main(points: int) -> None:
    """Kill at a number of points, spread over the calls of a save."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as top:
        whole = hashes(go_on(Path(top) / "whole", until=LAST))
        begun, counted = Path(top) / "begun", Path(top) / "counted"
        go_on(begun, until=FIRST)
        shutil.copytree(begun, counted)
        save = state.save
        calls = count_calls(counted)
        state.save = save
        killed, ends = 0, set()
        for point in range(points):
            folder = Path(top) / str(point)
            shutil.copytree(begun, folder)
            number = (2 * point + 1) * calls // (2 * points)
            status = in_child(lambda folder=folder, number=number: die_at(folder, number))
            killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            assert state.newest(folder).name in (f"step-{FIRST:08d}", f"step-{LAST:08d}")
            ends.add(hashes(go_on(folder, until=LAST)))
            assert not list(folder.glob("*.draft-*"))
    print(json.dumps({"calls": calls, "killed": killed, "is_equal": ends == {whole}, "distinct": len(ends)}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
