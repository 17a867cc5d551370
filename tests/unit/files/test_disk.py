"""Text and JSON files: read with one-sentence errors, written whole or not at all."""

import errno
from pathlib import Path

import pytest
import torch

from llamita.config import LlamaConfig
from llamita.errors import AccessError, BrokenFileError, LlamitaError, MemoryShortError, NotFoundError, UsageError
from llamita.files.disk import explained, read_json, read_text
from llamita.files.write import save_checkpoint, write_json, write_text


def test_json_goes_and_comes(tmp_path: Path):
    write_json(tmp_path / "a.json", {"name": "león", "n": [1, None]})
    assert (tmp_path / "a.json").read_text(
        encoding="utf-8"
    ) == '{\n  "name": "león",\n  "n": [\n    1,\n    null\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"name": "león", "n": [1, None]}
    write_text(tmp_path / "a.json", '\ufeff{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_text(tmp_path / "a.txt", "old")

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(LlamitaError, match=r"cannot write .*a\.txt: the disk is full"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{'a': 1}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_broken_json_is_one_sentence(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BrokenFileError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert "a.json" in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path):
    with pytest.raises(NotFoundError, match="it does not exist"):
        read_text(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot read .*: a folder of this path is a file, name another path"):
        read_text(tmp_path / "file" / "absent")
    with pytest.raises(LlamitaError, match=r"cannot read .*: it is a folder, name a file"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), AccessError, "permission denied"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), LlamitaError, "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), LlamitaError, "input/output error"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryShortError, "too little memory"),
        (NotFoundError("told already"), NotFoundError, "^told already$"),
    ],
)
def test_what_the_system_refuses_is_explained(error: OSError, kind: type[LlamitaError], message: str):
    with pytest.raises(kind, match=message), explained("read", Path("a")):
        raise error


def test_errors_name_the_file_that_is_meant_and_not_its_draft(tmp_path: Path) -> None:
    for write in (
        lambda path: write_text(path, "a"),
        lambda path: write_json(path, {}),
    ):
        with pytest.raises(LlamitaError) as caught:
            write(tmp_path / "no" / "a.txt")
        assert ".tmp" not in str(caught.value)
    with pytest.raises(NotFoundError, match=r"cannot write .*no/a\.txt: the folder .*no does not exist$"):
        write_text(tmp_path / "no" / "a.txt", "a")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(LlamitaError, match=r"cannot write .*/config\.json: it is a folder"):
        LlamaConfig().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(LlamitaError, match=r"cannot write .*/model\.safetensors: it is a folder"):
        save_checkpoint({"a": torch.ones(1)}, tmp_path)
