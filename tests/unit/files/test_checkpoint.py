"""Checkpoints read by name: every dtype, shards, old .bin files, memory that is mapped and never copied."""

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamita.errors import BrokenFileError, NotFoundError
from llamita.files.checkpoint import open_checkpoint
from llamita.files.safetensors import DTYPES


def some(count: int = 3) -> dict[str, torch.Tensor]:
    return {f"layer.{i}.weight": torch.randn(2 + i, 5) for i in range(count)}


def sharded(folder: Path, save=save_file, suffix: str = "safetensors", stem: str = "model") -> dict[str, torch.Tensor]:
    tensors = some()
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items(), start=1):
        weight_map[name] = f"{stem}-{i:05d}-of-00003.{suffix}"
        save({name: tensor}, folder / weight_map[name])
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return tensors


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, dtypes without arithmetic included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b))) if a.numel() else True


def test_every_dtype_and_shape_as_the_reference_writes_it(tmp_path: Path):
    tensors = {code: torch.arange(24).view(4, 6).to(dtype) for code, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.zeros(0, 3), "odd": torch.ones(3, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as files:
        assert sorted(files.names) == sorted(tensors) == sorted(files)
        assert len(files) == len(tensors)
        assert "scalar" in files
        for name, tensor in tensors.items():
            assert files.shape(name) == tuple(tensor.shape)
            assert files.dtype(name) == tensor.dtype
            assert same(files.load(name), tensor), name


def test_shards(tmp_path: Path):
    tensors = sharded(tmp_path)
    files = open_checkpoint(tmp_path)
    assert files.names == list(tensors)
    assert [path.name for path in files.paths] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert all(same(files.load(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_old_bin_files(tmp_path: Path, zipped: bool):
    tensors = some()
    tensors["tied"] = tensors["layer.0.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with open_checkpoint(tmp_path) as files:
        assert all(same(files.load(name), tensor) for name, tensor in tensors.items())
        assert files.shape("tied") == (2, 5)


def test_sharded_bin_files(tmp_path: Path):
    tensors = sharded(tmp_path, torch.save, "bin", "pytorch_model")
    with open_checkpoint(tmp_path) as files:
        assert all(same(files.load(name), tensor) for name, tensor in tensors.items())


def test_safetensors_win_over_bin_and_single_over_index(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).names == ["a"]
    sharded(tmp_path)
    assert len(open_checkpoint(tmp_path)) == 3
    save_file({"b": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).names == ["b"]


def test_tensors_outlive_the_checkpoint_and_writing_never_reaches_the_file(tmp_path: Path):
    save_file({"a": torch.arange(4096.0)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    files = open_checkpoint(tmp_path)
    tensor = files.load("a")
    again = files.load("a")
    files.close()
    del files
    gc.collect()
    weight = torch.nn.Parameter(tensor)
    weight.sum().backward()
    with torch.no_grad():
        weight.add_(1)
    assert weight[7] == 8
    assert again.data_ptr() == tensor.data_ptr(), "one mapping, not two copies"
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_closed_checkpoint_holds_nothing(tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as files:
        pass
    assert files.names == []
    with pytest.raises(KeyError):
        files.load("a")


def test_loading_takes_no_memory_of_its_own(tmp_path: Path):
    size = 32 * 2**20
    save_file({"a": torch.zeros(size, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as files:
        before = private_bytes()
        tensor = files.load("a")
        assert int(tensor.max()) == 0  # read every page
        assert private_bytes() - before < size / 4


def private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_unaligned_tensors_are_read(tmp_path: Path):
    header = json.dumps(
        {
            "b": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "f": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        }
    ).encode()
    data = bytes([1, 2, 3]) + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    files = open_checkpoint(tmp_path)
    assert files.load("b").tolist() == [1, 2, 3]
    assert files.load("f").tolist() == [1.5, -2.0]


def test_links_as_in_the_hub_cache_are_followed(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(Path("..") / "blobs" / "0123")
    assert open_checkpoint(tmp_path / "snapshot").load("a").tolist() == [1, 1]


def test_nothing_there(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"no weights in .* looked for model\.safetensors, "):
        open_checkpoint(tmp_path)
    with pytest.raises(NotFoundError, match="it does not exist"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match="it is a file"):
        open_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "x": "model-00009-of-00003.safetensors"}, "not in the folder"),
        (lambda m: {**m, "x": "model-00001-of-00003.safetensors"}, "which it does not"),
        (lambda m: {**m, "x": "../model-00001-of-00003.safetensors"}, "do not trust"),
        (lambda m: {**m, "x": "/etc/passwd.safetensors"}, "do not trust"),
        (lambda m: {**m, "x": "..\\a.safetensors"}, "do not trust"),
        (lambda m: {**m, "x": "C:a.safetensors"}, "do not trust"),
        (lambda m: {**m, "x": "a\0.safetensors"}, "do not trust"),
        (lambda m: {**m, "x": "config.json"}, "do not trust"),
        (lambda m: {**m, "x": "pytorch_model.bin"}, "do not trust"),
        (lambda m: {**m, "x": ["model-00001-of-00003.safetensors"]}, "no weight_map"),
        (lambda m: {}, "no weight_map"),
        (lambda m: [1], "no weight_map"),
        (lambda m: None, "no weight_map"),
    ],
)
def test_a_wrong_index_is_one_sentence(tmp_path: Path, change, message: str):
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(BrokenFileError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"3", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_an_index_that_is_no_json_object(tmp_path: Path, content: bytes):
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
