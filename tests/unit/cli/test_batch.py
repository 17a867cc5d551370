"""`llamita batch`: files in and out, and what it says where they are not what they should be."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamita.cli import batch, main
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_main import Terminal, look_at, screen  # noqa: F401

FILES = ("in.jsonl", "out.jsonl")
FLAGS = ("--alias", "m", "--max-num-seqs", "2")
URL = "/v1/completions"


def line(custom_id: str, *, url: str = URL, **body: Any) -> str:
    body = {"model": "m", "prompt": f"It is {custom_id}", "max_tokens": 4, "seed": 3, "temperature": 1.0, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def texts(output: str) -> dict[str, str]:
    """What was written, by custom_id."""
    lines = map(json.loads, output.splitlines())
    return {one["custom_id"]: one["response"]["body"]["choices"][0]["text"] for one in lines}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the input into the folder that `run` is in."""

    def written(*lines: str) -> Path:
        (tmp_path / "in.jsonl").write_text("".join(lines))
        return tmp_path

    return written


def test_a_batch_is_answered_and_gone_on_with(run: Run, write: Callable[..., Path]) -> None:
    folder = write(*[line(name) for name in "abc"], line("d", temperature=9))
    outcome = run("batch", *FILES, *FLAGS)
    assert (outcome.code, outcome.out) == (0, "")
    assert "done: 4 of 4 requests are in out.jsonl, 1 of them with an error" in outcome.err
    lines = (folder / "out.jsonl").read_text().splitlines(keepends=True)
    assert {json.loads(one)["custom_id"]: json.loads(one)["response"]["status_code"] for one in lines} == {
        **dict.fromkeys("abc", 200),
        "d": 400,
    }
    kept = "".join(one for one in lines if '"custom_id": "c"' not in one)
    (folder / "out.jsonl").write_text(kept + lines[0][:30])
    assert run("batch", *FILES, *FLAGS, "--quiet") == (0, "", "")
    again = (folder / "out.jsonl").read_text()
    assert again.startswith(kept)
    written = [one for one in again.splitlines() if '"custom_id": "d"' not in one]
    assert texts("\n".join(written)) == texts("".join(one for one in lines if '"custom_id": "d"' not in one))


def test_a_batch_that_is_done_loads_no_model(
    run: Run, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(line("a"))
    assert run("batch", *FILES, *FLAGS).code == 0
    monkeypatch.setattr("llamita.cli.served.load", None)
    outcome = run("batch", *FILES, *FLAGS)
    assert (outcome.code, outcome.err) == (0, "done: 1 of 1 requests are in out.jsonl\n")


def test_a_pipe(run: Run, write: Callable[..., Path]) -> None:
    folder = write(line("a"), line("b"))
    assert run("batch", *FILES, *FLAGS).code == 0
    expected = texts((folder / "out.jsonl").read_text())
    for words in (["-", "-"], []):
        outcome = run("batch", *words, *FLAGS, "-q", stdin=(folder / "in.jsonl").read_bytes())
        assert (outcome.code, texts(outcome.out)) == (0, expected)


def test_bad_lines_are_answered_where_that_is_asked_for(run: Run, write: Callable[..., Path]) -> None:
    folder = write(line("a"), "nonsense\n", line("a"), line("c", url="/v1/models"))
    assert run("batch", *FILES, *FLAGS, "--keep-going").code == 0
    found = {one["custom_id"] or one["error"]["message"][:6]: one for one in lines_of(folder)}
    assert sorted(found) == ["a", "c", "line 2", "line 3"]
    assert found["a"]["error"] is None
    assert found["c"]["response"] is None
    assert found["line 2"]["error"] == {"code": "invalid_request", "message": found["line 2"]["error"]["message"]}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in (folder / "out.jsonl").read_text().splitlines()]


def test_receipts(run: Run, write: Callable[..., Path]) -> None:
    folder = write(line("a"))
    assert run("batch", *FILES, *FLAGS, "--receipts").code == 0
    assert len(lines_of(folder)[0]["response"]["body"]["receipts"]) == 1


BAD: dict[str, tuple[list[str], list[str], int, str]] = {
    "missing": (["none.jsonl", "out.jsonl"], [], 3, "cannot read none.jsonl"),
    "folder": ([".", "out.jsonl"], [], 2, "it is a folder, name a file"),
    "output folder": (["in.jsonl", "no/out.jsonl"], [], 3, "the folder no does not exist"),
    "no json": ([*FILES], ["nonsense\n"], 1, "in.jsonl: line 2 is no JSON"),
    "twice": ([*FILES], [line("a")], 1, "line 2 has the custom_id 'a' of line 1"),
    "url": ([*FILES], [line("b", url="/v2")], 1, "line 2 has the url '/v2'"),
    "same": (["in.jsonl", "./in.jsonl", "--force"], [], 2, "both input and output"),
    "other output": (["in.jsonl", "other.jsonl"], [], 2, "line 1 of other.jsonl answers no request"),
    "limit": ([*FILES, "--max-num-seqs", "0"], [], 2, "--max-num-seqs is 0"),
    "no name": ([*FILES, "--alias", ""], [], 2, "an --alias has 1 to 256 characters"),
    "names": ([*FILES, "--alias", "a", "--alias", "b"], [], 2, "2 --alias for 1 models"),
    "no input": ([], [], 2, "there is no input"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    name: str, run: Run, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, lines, code, message = BAD[name]
    folder = write(line("a"), *lines)
    (folder / "other.jsonl").write_text("mine\n")
    monkeypatch.setattr("llamita.cli.served.load", None)
    outcome = run("batch", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert (folder / "other.jsonl").read_text() == "mine\n"
    assert (folder / "in.jsonl").read_text() == line("a") + "".join(lines)


def test_a_model_that_is_not_there_is_one_sentence(run: Run, write: Callable[..., Path]) -> None:
    folder = write(line("a", model="gpt-4o"))
    outcome = run("batch", *FILES, *FLAGS)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "line 1 asks for the model 'gpt-4o', here is m" in outcome.err
    assert (folder / "out.jsonl").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk(run: Run, write: Callable[..., Path]) -> None:
    write(line("a"), line("b"))
    outcome = run("batch", "in.jsonl", "/dev/full", *FLAGS)
    assert outcome.code == 1
    assert "stopped: 0 of 2 requests are in /dev/full" in outcome.err
    assert "the disk is full" in outcome.err


def test_an_engine_that_cannot_answer(run: Run, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(line("a"))
    load = batch.served.load

    def stopped(*given: Any) -> Any:
        models = load(*given)
        models[0].engine.close()
        return models

    monkeypatch.setattr("llamita.cli.served.load", stopped)
    outcome = run("batch", *FILES, *FLAGS)
    assert outcome.code == 1
    assert "the engine could not answer all: 0 of 1 requests are in out.jsonl; the same command" in outcome.err
    assert run("batch", *FILES, *FLAGS, "-q").code == 1
    assert (folder / "out.jsonl").read_bytes() == b""


@pytest.mark.usefixtures("run")
def test_a_terminal_sees_a_bar(
    screen: Terminal,  # noqa: F811
    write: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(line("a"), line("b"))
    look_at(screen, monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main.main(["batch", *FILES, *FLAGS]) == 0
    assert "2/2" in screen.getvalue()
