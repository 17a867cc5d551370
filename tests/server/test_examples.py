"""The examples that ask a server, run against one."""

import gc
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.server.serving import Running

EXAMPLES = sorted((ROOT / "examples").glob("*_client.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(
    path: Path, server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", [str(path), server.address])
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        runpy.run_path(str(path), run_name="__main__")
        gc.collect()  # an example leaves its connections to the end of its process
    assert capsys.readouterr().out
