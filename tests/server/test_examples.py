"""The examples that ask a server, run against one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.server.serving import PATIENCE, Running

EXAMPLES = sorted((ROOT / "examples").glob("*_client.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path: Path, server: Running) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    command = [sys.executable, str(path), server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout
