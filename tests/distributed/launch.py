"""Runs a function in several processes of one group, as torchrun would, and brings back what each of them returned."""

import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

SECONDS = 240  # after which processes that wait for each other are given up


def launch(case: str, processes: int, folder: Path, *words: str) -> list[Any]:
    """What `module:function`, called with the words, returned in each process, by rank; it joins the group itself.

    The processes are judged by what they left, not by how they end: gloo now and then aborts a process at its exit.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "tests.distributed.launch", str(folder), case, *words]
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        log = (folder / f"{rank}.log").open("w+", encoding="utf-8")
        variables = os.environ | shared | own
        started.append((subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT), log))
    try:
        return [_answer(folder, rank, process, log) for rank, (process, log) in enumerate(started)]
    finally:
        for process, log in started:
            process.kill()
            process.wait()
            log.close()


def _answer(folder: Path, rank: int, process: subprocess.Popen[bytes], log: Any) -> Any:
    process.wait(timeout=SECONDS)
    left = folder / f"{rank}.pt"
    if not left.exists():
        log.seek(0)
        raise AssertionError(f"process {rank} ended with {process.returncode}:\n{log.read()}")
    return torch.load(left, weights_only=False)


def main(folder: str, case: str, *words: str) -> None:
    """Call a case in this process, and leave what it returned in the folder."""
    torch.set_num_threads(1)
    module, _, function = case.partition(":")
    answer = getattr(import_module(module), function)(*words)
    left = Path(folder) / f"{os.environ['RANK']}.pt"
    torch.save(answer, left.with_suffix(".tmp"))
    left.with_suffix(".tmp").rename(left)


if __name__ == "__main__":
    main(*sys.argv[1:])
