"""Truncated, lying and disguised weight files: one clear sentence each, and nothing loaded."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from llamita.errors import BrokenFileError
from llamita.files.checkpoint import open_checkpoint
from llamita.files.safetensors import SafetensorsFile, read_header

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
GOOD = save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int64)})


def packed(header: Any, data: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def complaint(folder: Path, content: bytes, name: str = "model.safetensors") -> str:
    (folder / name).write_bytes(content)
    with pytest.raises(BrokenFileError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x01\x02", "too short"),
        (struct.pack("<Q", 2**64 - 1) + bytes(100), "announce"),
        (struct.pack("<Q", 200_000_000) + bytes(100), "announce"),
        (struct.pack("<Q", 500) + b"{}", "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD + b"\0", "belong to no tensor"),
        (packed(b"{", b""), "damaged header"),
        (packed(b"\xff{}", b""), "damaged header"),
        (packed([1], b""), "no JSON object"),
        (packed(b"[" * 100_000, b""), "damaged header"),
        (packed(b'{"a":1,"a":2}', b""), "occurs twice"),
        (packed(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "occurs twice"),
        (packed({"__metadata__": {"a": 1}}, b""), "only strings"),
        (packed({"__metadata__": [1]}, b""), "only strings"),
        (packed({"a": 1}), "is damaged"),
        (packed({"a": {}}), "is damaged"),
        (packed({"a": {**ONE, "data_offsets": [0]}}), "is damaged"),
        (packed({"a": {**ONE, "shape": 3}}), "is damaged"),
        (packed({"a": {**ONE, "shape": "2"}}), "impossible"),
        (packed({"a": {**ONE, "dtype": "F31"}}), "unknown dtype"),
        (packed({"a": {**ONE, "dtype": ["F32"]}}), "unknown dtype"),
        (packed({"a": {**ONE, "shape": [3]}}), "cannot take"),
        (packed({"a": {**ONE, "shape": [-1, -2]}}), "impossible"),
        (packed({"a": {**ONE, "shape": [2.0]}}), "impossible"),
        (packed({"a": {**ONE, "shape": [True, 2]}}), "impossible"),
        (packed({"a": {**ONE, "shape": [2**63, 2**63, 2**63]}}), "cannot take"),
        (packed({"a": {**ONE, "shape": [0, 2**63], "data_offsets": [0, 0]}}, b""), "impossible"),
        (packed({"a": {**ONE, "data_offsets": [8, 0]}}), "cannot take"),
        (packed({"a": {**ONE, "data_offsets": [-8, 0]}}), "impossible"),
        (packed({"a": {**ONE, "data_offsets": [8, 16]}}, bytes(16)), "hole"),
        (packed({"a": ONE, "b": ONE}), "overlaps"),
        (packed({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "overlaps"),
        (packed({"a": ONE, "b": {**ONE, "data_offsets": [8, 16]}}), "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"GGUF" + bytes(60), "a GGUF file"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle"),
    ],
)
def test_ts3_a_hostile_safetensors_file_is_one_sentence(tmp_path: Path, content: bytes, message: str):
    assert message in complaint(tmp_path, content)


def test_a_header_whose_length_has_the_bytes_of_a_pickle_is_read(tmp_path: Path):
    length = int.from_bytes(pickle.dumps(None, protocol=2)[:2], "little")
    header = json.dumps({"a": ONE}).encode().ljust(length)
    (tmp_path / "model.safetensors").write_bytes(packed(header))
    assert torch.equal(SafetensorsFile(tmp_path / "model.safetensors").load("a"), torch.zeros(2))


def test_a_damaged_shard_is_found_before_anything_is_returned(tmp_path: Path):
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / names["a"]).write_bytes(GOOD)
    assert "truncated" in complaint(tmp_path, GOOD[:-1], names["b"])


@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_ts3_a_changed_byte_is_a_clear_error_or_another_value(place: int, byte: int):
    content = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    try:
        read_header(io.BytesIO(content), Path("model.safetensors"))
    except BrokenFileError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("protocol", [2, 4])
def test_ts1_a_pickle_runs_nothing(tmp_path: Path, protocol: int):
    trace = tmp_path / "trace"

    class Touching:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"a": torch.ones(1), "b": Touching()}, tmp_path / "evil.pt", pickle_protocol=protocol)
    assert "safetensors" in complaint(tmp_path, (tmp_path / "evil.pt").read_bytes(), "pytorch_model.bin")
    assert "safetensors" in complaint(tmp_path, pickle.dumps(Touching(), protocol=protocol), "pytorch_model.bin")
    assert not trace.exists()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def empty_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"hello", "damaged"),
        (saved({"a": torch.ones(100)})[:300], "damaged"),
        (empty_archive(), "damaged"),
        (saved([torch.ones(1)]), "holds a list"),
        (saved({"a": torch.ones(1), "step": 3}), "no dense tensor"),
        (saved({"a": torch.ones(2).to_sparse()}), "no dense tensor"),
        (saved({1: torch.ones(2)}), "no dense tensor"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_hostile_bin_file_is_one_sentence(tmp_path: Path, content: bytes, message: str):
    assert message in complaint(tmp_path, content, "pytorch_model.bin")
