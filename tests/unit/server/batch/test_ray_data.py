"""llamita batch --ray: the answers of a batch without it, also after the process is killed."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llamita.cli.main import main

HAS_RAY = importlib.util.find_spec("ray") is not None
REQUESTS = 24
PATIENCE = 300.0  # seconds; a busy machine takes minutes to start Ray


@pytest.fixture
def words(tmp_path: Path, small_path: Path) -> list[str]:
    """The command; what is added to it names no file."""
    lines = []
    for number in range(REQUESTS):
        body = {"model": "m", "prompt": f"{number % 3} and so on", "max_tokens": 40, "seed": number, "temperature": 1.0}
        lines.append({"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    files = [str(tmp_path / name) for name in ("in.jsonl", "out.jsonl")]
    return ["batch", *files, "-m", str(small_path), "--alias", "m", "--max-num-seqs", "2"]


def texts(path: Path) -> dict[str, Any]:
    """The choices of each answer; every line is there once."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = {one["custom_id"]: one["response"]["body"]["choices"] for one in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--ray", "-q"]) == 6
    assert capsys.readouterr().err == "llamita: --ray needs Ray Data: pip install 'llamita[scale]'\n"


def test_replicas_without_ray(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--replicas", "2"]) == 2
    assert "--replicas are processes on Ray Data: give --ray too" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'llamita[scale]'")
def test_kill_and_go_on(words: list[str], tmp_path: Path) -> None:
    out, on_ray = tmp_path / "out.jsonl", ["--ray", "--replicas", "1"]
    assert main(words) == 0
    here = texts(out)
    out.unlink()
    with subprocess.Popen([sys.executable, "-m", "llamita", *words, *on_ray]) as process:
        until = time.monotonic() + PATIENCE
        while not (out.exists() and out.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 4 <= out.read_bytes().count(b"\n") < REQUESTS
    found = subprocess.run([sys.executable, "-m", "llamita", *words, *on_ray, "-q"], timeout=PATIENCE)
    assert found.returncode == 0
    assert texts(out) == here
