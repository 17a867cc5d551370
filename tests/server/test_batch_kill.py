"""A batch that is killed or interrupted at any point goes on, and in the end has what an undisturbed one has."""

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.main import main
from tests.server.serving import PATIENCE
from tests.zygote import Forked, Zygote

REQUESTS = 60
KILLS = (1, 9, 30)  # lines that the output has when the process is killed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for number in range(REQUESTS):
        body = {"model": "m", "prompt": f"{number % 7} and so on", "max_tokens": 60, "seed": number, "temperature": 1.0}
        lines.append({"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return tmp_path


def words(folder: Path, model: Path, output: str) -> list[str]:
    files = [str(folder / "in.jsonl"), str(folder / output)]
    return ["batch", *files, "-m", str(model), "--alias", "m", "--max-num-seqs", "2"]


def wait_for_lines(path: Path, count: int, process: Forked) -> None:
    """Wait until a process has added so many lines."""
    until = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.002)


def texts(path: Path) -> dict[str, Any]:
    """The choices of each answer; every line is there once."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = {(one["id"], one["custom_id"]): one["response"]["body"]["choices"] for one in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.early
@pytest.mark.skipif(os.name != "posix", reason="Windows has no signals to kill with")
def test_kill_and_go_on(folder: Path, small_path: Path, zygote: Zygote, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out.jsonl"
    for count in KILLS:
        with closing(zygote.open(words(folder, small_path, "out.jsonl"))) as process:
            wait_for_lines(out, count, process)
            process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
        assert count <= out.read_bytes().count(b"\n") < REQUESTS
    with closing(zygote.open(words(folder, small_path, "out.jsonl"))) as process:
        wait_for_lines(out, KILLS[-1] + 5, process)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 130
    done = out.read_bytes().count(b"\n")
    assert f"interrupted: {done} of {REQUESTS} requests are in {out}; the same command goes on from there" in said
    assert main(words(folder, small_path, "out.jsonl")) == 0
    assert main(words(folder, small_path, "whole.jsonl")) == 0
    assert texts(out) == texts(folder / "whole.jsonl")
    assert f"done: {REQUESTS} of {REQUESTS} requests" in capsys.readouterr().err
