"""llamita verify prints every comparison and fails when a number differs."""

from pathlib import Path

import pytest

from llamita import verify
from llamita.cli.main import main


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [verify.Case(), verify.Case(cached=True, padding="left")]
    monkeypatch.setattr(verify, "grid", lambda: iter(cases))


@pytest.mark.usefixtures("two_cases")
def test_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("float32 sdpa default GQA pad none uncached") and "gradients 0" in first
    assert "pad left cached" in second and "logits 0" in second
    assert last.startswith("2 cases, 0 differ from transformers")


@pytest.mark.usefixtures("two_cases")
def test_a_difference_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "difference", lambda case: {"logits": 0.25 if case.cached else 0.0})
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 cases, 1 differ from transformers; ")


def test_a_checkpoint(small_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(small_path), "--against", "transformers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[-1] == "8 runs, 0 differ from transformers"


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_quick_takes_a_few_in_which_every_value_comes_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_path: Path
) -> None:
    taken: list[verify.Case] = []
    monkeypatch.setattr(verify, "difference", lambda case: taken.append(case) or {"logits": 0.0})
    assert main(["verify", "--quick"]) == 0
    every = list(verify.grid())
    assert len(taken) * 20 < len(every)
    for name in ("dtype", "backend", "rope", "heads", "padding", "cached", "bias"):
        assert {getattr(case, name) for case in taken} == {getattr(case, name) for case in every}
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(taken)} cases, 0 differ")
    assert main(["verify", "-m", str(small_path), "--quick"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs, 0 differ from transformers"


def test_how_long_it_takes_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "difference", lambda case: {"logits": 0.0})
    assert main(["verify"]) == 0
    told = capsys.readouterr()
    assert told.err == "(864 small models, 38 with --quick)\n(about 1 s in all)\n"
    assert main(["verify", "-q"]) == 0
    assert capsys.readouterr() == (told.out.splitlines()[-1] + "\n", "")
