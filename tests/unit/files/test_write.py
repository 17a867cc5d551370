"""Checkpoints written: names and index, tied and strange tensors, and a fault at every single step."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llamita.errors import AccessError, LlamitaError, UnsupportedError, UsageError
from llamita.files.checkpoint import open_checkpoint
from llamita.files.write import save_checkpoint

SIZES = {"a": 4, "b": 4, "c": 2}  # float32 values; with 20-byte shards two, with 24 one and a half


def filled(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((size,), float(value)) for name, size in SIZES.items()}


def value_of(folder: Path) -> float:
    """The one value that a whole checkpoint holds."""
    with open_checkpoint(folder) as files:
        assert sorted(files.names) == sorted(SIZES)
        values = {number for name in files for number in files.load(name).tolist()}
    assert len(values) == 1, f"a mix of checkpoints: {values}"
    return values.pop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_that_the_reference_reads(tmp_path: Path):
    tensors = {
        "half": torch.randn(3, 4).to(torch.bfloat16),
        "view": torch.randn(4, 6).t()[1:],
        "odd": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 7),
        "weight": torch.nn.Parameter(torch.randn(2, 2)),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
    }
    assert save_checkpoint(tensors, tmp_path / "new" / "folder") == [tmp_path / "new" / "folder" / "model.safetensors"]
    loaded = load_file(tmp_path / "new" / "folder" / "model.safetensors")
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.detach().float())
    with safe_open(tmp_path / "new" / "folder" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_are_named_and_indexed_as_hugging_face_does(tmp_path: Path):
    files = save_checkpoint(filled(1), tmp_path, max_shard_size=20)
    assert names(tmp_path) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    assert [file.name for file in files] == names(tmp_path)[:3]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 40
    assert index["weight_map"] == {name: file.name for name, file in zip(SIZES, files, strict=True)}
    assert value_of(tmp_path) == 1


def test_transformers_reads_what_we_write(tmp_path: Path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    save_checkpoint(model.state_dict(), tmp_path, max_shard_size="4KB")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("size", "shards"), [("1GB", 1), ("1gib", 1), (20, 3), ("0.024KB", 2), ("24", 2), (40, 1), (1, 3)]
)
def test_shard_sizes(tmp_path: Path, size: int | str, shards: int):
    assert len(save_checkpoint(filled(1), tmp_path, max_shard_size=size)) == shards


@pytest.mark.parametrize("size", [0, -1, "five", "5 bytes", "", "0.1"])
def test_wrong_shard_sizes(tmp_path: Path, size: int | str):
    with pytest.raises(UsageError, match="max_shard_size"):
        save_checkpoint(filled(1), tmp_path, max_shard_size=size)
    assert names(tmp_path) == []


def test_tied_tensors_are_written_under_each_name_or_once(tmp_path: Path):
    weight = torch.randn(3, 2)
    tensors = {
        "embed": weight,
        "head": weight.view(3, 2),
        "turned": weight.t(),
        "e1": torch.zeros(0),
        "e2": torch.zeros(0),
    }
    save_checkpoint(tensors, tmp_path)
    assert torch.equal(open_checkpoint(tmp_path).load("head"), weight)
    save_checkpoint(tensors, tmp_path, shared="once")
    assert sorted(open_checkpoint(tmp_path).names) == ["e1", "e2", "embed", "turned"]


def test_what_cannot_be_written(tmp_path: Path):
    for tensor, error in [
        (torch.zeros(2, device="meta"), UsageError),
        (torch.zeros(2, dtype=torch.complex128), UnsupportedError),
        (torch.zeros(2).to_sparse(), UnsupportedError),
    ]:
        with pytest.raises(error, match="tensor 'x'"):
            save_checkpoint({"x": tensor}, tmp_path)
    assert names(tmp_path) == []


def test_a_save_over_the_file_it_was_loaded_from(tmp_path: Path):
    for size in ("1GB", 20, 20):
        save_checkpoint(filled(1), tmp_path, max_shard_size=size)
        tensors = {name: open_checkpoint(tmp_path).load(name) for name in SIZES}
        save_checkpoint(tensors, tmp_path, max_shard_size=size)
        assert value_of(tmp_path) == 1
        assert all(tensor.eq(1).all() for tensor in tensors.values())


def test_stale_shards_and_drafts_go_and_other_files_stay(tmp_path: Path):
    others = ["adapter_model.safetensors", "config.json", "consolidated.safetensors", "pytorch_model.bin"]
    for name in [*others, "model.draft-0123abcd.safetensors", "model-00001-of-00009.safetensors"]:
        (tmp_path / name).touch()
    save_checkpoint(filled(1), tmp_path, max_shard_size=24)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert names(tmp_path) == sorted([*others, *shards])
    save_checkpoint(filled(1), tmp_path)
    assert names(tmp_path) == sorted([*others, "model.safetensors"])


class Crash(BaseException):
    """The machine stops: from here on nothing more happens on the disk."""


class Disk:
    """Counts the steps that touch the disk, and fails at one of them: once, or for good."""

    def __init__(self, patch: pytest.MonkeyPatch, *, at: int, error: BaseException, for_good: bool) -> None:
        self.steps, self._at, self._error, self._for_good = 0, at, error, for_good
        patch.setattr(os, "fsync", lambda handle: None)
        for owner, name in [
            (os, "fsync"),
            (os, "link"),
            (Path, "open"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
        ]:
            patch.setattr(owner, name, self._guarded(getattr(owner, name)))
        write_tensors = self._guarded(self._half_written)
        patch.setattr("llamita.files.write.write_tensors", write_tensors)

    def _half_written(self, file, tensors, metadata) -> None:
        from llamita.files.safetensors import write_tensors

        file.write(b"\x10")
        self._step()
        file.seek(0)
        write_tensors(file, tensors, metadata)

    def _guarded(self, function: Callable) -> Callable:
        def guarded(*args, **kwargs):
            self._step()
            return function(*args, **kwargs)

        return guarded

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self._at or (self._for_good and self.steps > self._at):
            raise self._error


FORMS = {"single": "1GB", "three": 20, "two": 24}
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("new", FORMS)
@pytest.mark.parametrize("old", FORMS)
@pytest.mark.parametrize(
    ("error", "for_good"),
    [(Crash(), True), (FULL, True), (FULL, False), (KeyboardInterrupt(), False)],
    ids=["crash", "full", "hiccup", "interrupt"],
)
def test_a_fault_at_any_step_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, error: BaseException, for_good: bool
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    at, is_done = 0, False
    while not is_done:
        at += 1
        folder = tmp_path / str(at)
        save_checkpoint(filled(1), folder, max_shard_size=FORMS[old])
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, at=at, error=error, for_good=for_good)
            try:
                save_checkpoint(filled(2), folder, max_shard_size=FORMS[new])
            except (Crash, LlamitaError, KeyboardInterrupt) as caught:
                assert isinstance(caught, type(error)) or "disk is full" in str(caught)
                is_over = False
            else:
                is_over = True
            is_done = disk.steps < at
        assert value_of(folder) in ((2,) if is_over else (1, 2))
        save_checkpoint(filled(3), folder, max_shard_size=FORMS[new])  # The next save cleans up what was left.
        assert value_of(folder) == 3
        assert not [name for name in names(folder) if "draft" in name or name.endswith(".tmp")]
    assert at > 8


@pytest.mark.parametrize("new", FORMS)
def test_a_failed_first_save_leaves_nothing(tmp_path: Path, new: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        Disk(patch, at=4, error=FULL, for_good=False)
        with pytest.raises(LlamitaError, match="the disk is full"):
            save_checkpoint(filled(1), tmp_path, max_shard_size=FORMS[new])
    assert names(tmp_path) == []


def test_without_hard_links_the_checkpoint_is_whole_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    save_checkpoint(filled(1), tmp_path, max_shard_size=20)
    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(filled(2), tmp_path, max_shard_size=24)
    assert value_of(tmp_path) == 2
    assert len(names(tmp_path)) == 3


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        Disk(patch, at=1, error=PermissionError(errno.EACCES, "Permission denied"), for_good=True)
        with pytest.raises(AccessError, match="permission denied"):
            save_checkpoint(filled(1), tmp_path / "locked")
    (tmp_path / "file").touch()
    with pytest.raises(LlamitaError, match="cannot write"):
        save_checkpoint(filled(1), tmp_path / "file")
