"""The output of a batch: what a killed run left is gone on with, and nobody else's file is touched."""

import json
import os
from pathlib import Path

import pytest

from llamita.errors import AccessError, LlamitaError, NotFoundError, UsageError
from llamita.server.batch.output import BatchOutput, output_line

IDS = [f"batch_req_{number}" for number in range(4)]


def answer(id: str, *, status: int = 200, fingerprint: str | None = "fp") -> bytes:
    body = {"text": "ü"} if fingerprint is None else {"text": "ü", "system_fingerprint": fingerprint}
    return output_line(id, f"of {id}", response={"status_code": status, "request_id": id, "body": body})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_lines_are_in_the_file_at_once(path: Path) -> None:
    output = BatchOutput.open(path, IDS)
    output.write(answer(IDS[0]))
    output.write(output_line(IDS[1], None, error={"code": "invalid_request", "message": "no"}))
    first, second = map(json.loads, path.read_bytes().splitlines())
    assert first["response"] == {
        "status_code": 200,
        "request_id": IDS[0],
        "body": {"text": "ü", "system_fingerprint": "fp"},
    }
    assert (first["id"], first["custom_id"], first["error"]) == (IDS[0], f"of {IDS[0]}", None)
    assert second == {
        "id": IDS[1],
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_request", "message": "no"},
    }
    assert (output.done.ids, output.done.failed, output.done.fingerprints) == (set(IDS[:2]), 1, {"fp"})
    output.close()


def test_a_run_that_was_killed_at_any_byte_of_its_last_line_goes_on(path: Path) -> None:
    whole, last = answer(IDS[0]) + answer(IDS[1], status=400, fingerprint=None), answer(IDS[2])
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        output = BatchOutput.open(path, IDS)
        assert (output.done.ids, output.done.failed, output.done.fingerprints) == (set(IDS[:2]), 1, {"fp"})
        output.write(last)
        output.close()
        assert path.read_bytes() == whole + last


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"a shopping list", 1),
        (b"notes\n", 1),
        (answer(IDS[0]) + b"notes", 2),
        (answer(IDS[0]) + b"\n" + answer(IDS[1]), 2),
        (answer(IDS[0]) + answer("batch_req_other"), 2),
        (b'{"id": 7}\n', 1),
        (b"\xff\n", 1),
        (b"\0" * 40 + b"\n", 1),
    ],
)
def test_a_file_of_something_else_is_left_alone(path: Path, content: bytes, number: int) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"line {number} of .*--force"):
        BatchOutput.open(path, IDS)
    assert path.read_bytes() == content
    output = BatchOutput.open(path, IDS, is_new=True)
    output.write(answer(IDS[0]))
    output.close()
    assert path.read_bytes() == answer(IDS[0])


def test_a_second_process_is_kept_out(path: Path) -> None:
    pytest.importorskip("fcntl", reason="Windows has no flock")
    output = BatchOutput.open(path, IDS)
    for is_new in (False, True):
        with pytest.raises(AccessError, match="another process"):
            BatchOutput.open(path, IDS, is_new=is_new)
    output.close()
    BatchOutput.open(path, IDS).close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk() -> None:
    output = BatchOutput.open(Path("/dev/full"), IDS)
    with pytest.raises(LlamitaError, match="the disk is full"):
        output.write(answer(IDS[0]))
    assert output.done.ids == set()
    output.close()


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="folder"):
        BatchOutput.open(tmp_path / "none" / "out.jsonl", IDS)
    with pytest.raises(LlamitaError, match="it is a folder, name a file"):
        BatchOutput.open(tmp_path, IDS)


def test_everything_is_synced_in_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(sync(number)))
    output = BatchOutput.open(path, IDS)
    monkeypatch.setattr("llamita.server.batch.output.SYNC_EVERY", -1.0)
    output.write(answer(IDS[0]))
    output.close()
    assert len(synced) == 2
