"""The bench of GPUs where there is none, and its page."""

import runpy
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_page import Bench


def test_without_a_gpu_it_says_one_sentence_and_ends_with_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "-o", str(tmp_path / "page.md")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.gpu", run_name="__main__")
    assert ended.value.code == 6
    assert capsys.readouterr() == (
        "",
        "benchmarks.gpu needs a CUDA device, and this machine has none: run it on one that does\n",
    )
    assert not list(tmp_path.iterdir())


def test_a_part_without_time_or_with_a_failure_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    bench = Bench(tmp_path / "page.md", time.monotonic() + 100, facts=["a machine"])
    with bench.part("quick", 50) as has_time:
        assert has_time
        bench.add("tg64", "1b", "bf16", "llamita", [10.0, 30.0, 20.0], "tok/s", limit=40.0)
        bench.add("tg64", "1b", "bf16", "another", [5.0, 10.0, 40.0], "tok/s", limit=40.0, ours=20.0)
    with bench.part("slow", 150) as has_time:
        assert not has_time
    with bench.part("broken", 1):
        raise RuntimeError("first line\nsecond line")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "- a machine\n" in page
    assert "| tg64 | 1b | bf16 | llamita | 20.0 | 10.0 | 30.0 | tok/s |  | 50 % |\n" in page
    assert "| tg64 | 1b | bf16 | another | 10.0 | 5.0 | 40.0 | tok/s | 2.00 | 25 % |\n" in page
    assert "- slow: no time left\n- broken: RuntimeError, first line\n" in page
