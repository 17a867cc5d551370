"""Runs a function in several processes of one group, as torchrun would, and brings back what each of them returned."""

import atexit
import os
import pickle
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.architecture.source import ROOT
from tests.distributed import group
from tests.zygote import Zygote, result


@cache
def _forks() -> Zygote:
    """What forks for every launch of this process of tests: it has imported what they need, which takes seconds."""
    modules = "llamita.llm, llamita.loader, tests.distributed.command, tests.distributed.stage_cases"
    steps = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {modules}; from llamita.kernels.cpu import training"
    forks = Zygote(f"{steps}; training.has_kernels()")  # whose answer takes LLVM, and a process of steps asks
    atexit.register(forks.stop)
    return forks


def run(script: str) -> str:
    """What a script prints in a process of its own, with one thread and every warning an error."""
    whole = f"import torch; torch.set_num_threads(1); {script}"
    return result(_forks().start(whole, os.environ | {"PYTHONPATH": str(ROOT)}))


def launch(case: str, processes: int, folder: Path, *words: str) -> list[Any]:
    """What `module:function`, called with the words, returned in each process, by rank; it joins the group itself."""
    answers = folder / "answers"
    run(f"from tests.distributed import launch; launch.leave({str(answers)!r}, {processes}, {case!r}, *{words!r})")
    return pickle.loads(answers.read_bytes())


def leave(answers: str, processes: int, case: str, *words: str) -> None:
    """Call a case in as many processes, and leave in a file what it returned."""
    module, _, name = case.partition(":")
    function = getattr(import_module(module), name)
    found = [group.answer(*one) for one in group.start(processes, lambda: function(*words))]
    Path(answers).write_bytes(pickle.dumps(found))
