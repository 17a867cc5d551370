"""GGUF files that are damaged or lie: one clear sentence each, and no large allocation on the way."""

import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UnsupportedError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_split import open_gguf
from llamita.files.gguf_types import KINDS, NUMBERS, Field
from llamita.files.gguf_write import Piece, write_gguf

HUGE = 2**64 - 1


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def scalar(key: bytes, kind: str, letter: str, value: object) -> bytes:
    return text(key) + struct.pack(f"<I{letter}", NUMBERS[kind], value)


def array(key: bytes, kind: int, count: int, content: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", NUMBERS["array"], kind, count) + content


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (8,), storage: int = 0, offset: int = 0, axes: int = -1
) -> bytes:
    count = len(shape) if axes < 0 else axes
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, storage, offset)


def one(info: bytes, data: int = 64) -> bytes:
    raw = head(tensors=1) + info
    return raw + bytes(-len(raw) % 32 + data)


def two(first: bytes, second: bytes, data: int = 128) -> bytes:
    raw = head(tensors=2) + first + second
    return raw + bytes(-len(raw) % 32 + data)


ROOM = bytes(4000)
CASES = {
    "empty": (b"", "is empty"),
    "another format": (b"PK\x03\x04" + ROOM, "does not begin as a GGUF file does"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "only the magic": (b"GGUF", "the version should take 4 bytes where 0 are left"),
    "half a header": (head()[:15], "number of tensors"),
    "version 1": (head(version=1) + ROOM, "version 1 GGUF file"),
    "version 4": (head(version=4) + ROOM, "version 4 GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "too many tensors": (head(tensors=HUGE), "announces 18446744073709551615 tensors"),
    "too many fields": (head(fields=2**40) + ROOM, "announces 1099511627776 fields"),
    "fields beyond the end": (head(fields=400) + ROOM, "announces 400 fields"),
    "long key": (head(fields=1) + struct.pack("<Q", HUGE) + ROOM, "at most 65535 are allowed"),
    "key beyond the end": (head(fields=1) + struct.pack("<Q", 5000) + ROOM, "a key should take 5000 bytes"),
    "key not UTF-8": (head(fields=1) + text(b"\xff") + ROOM, "a key at byte 32 is not UTF-8"),
    "key twice": (head(fields=2) + 2 * scalar(b"a", "uint8", "B", 1) + ROOM, "the key 'a' twice"),
    "unknown kind": (head(fields=1) + text(b"a") + struct.pack("<I", 13) + ROOM, "of the unknown kind 13"),
    "a bool of 2": (head(fields=1) + scalar(b"a", "bool", "B", 2) + ROOM, "neither true nor false"),
    "bools of 2": (head(fields=1) + array(b"a", NUMBERS["bool"], 2, b"\1\2") + ROOM, "neither true nor false"),
    "long string": (head(fields=1) + scalar(b"a", "string", "Q", HUGE) + ROOM, "at most 100000000 are allowed"),
    "string not UTF-8": (head(fields=1) + scalar(b"a", "string", "Q", 2) + b"\xc3\x28" + ROOM, "not UTF-8"),
    "array of arrays": (head(fields=1) + array(b"a", NUMBERS["array"], 1) + ROOM, "an array of arrays"),
    "array of an unknown kind": (head(fields=1) + array(b"a", 99, 1) + ROOM, "of the unknown kind 99"),
    "endless array": (head(fields=1) + array(b"a", NUMBERS["uint64"], 2**61) + ROOM, "at most 4194304"),
    "array beyond the end": (head(fields=1) + array(b"a", NUMBERS["uint64"], 2**20) + ROOM, "should take 8388608"),
    "strings beyond the end": (head(fields=1) + array(b"a", NUMBERS["string"], 2**20) + ROOM, "has 1048576 strings"),
    "a string in an array beyond the end": (
        head(fields=1) + array(b"a", NUMBERS["string"], 2, text(b"x") + struct.pack("<Q", HUGE)) + ROOM,
        "string 1 of 'a' does not end",
    ),
    "a string in an array not UTF-8": (
        head(fields=1) + array(b"a", NUMBERS["string"], 1, text(b"\xff")) + ROOM,
        "string 0 of 'a'",
    ),
    "alignment 0": (head(fields=1) + scalar(b"general.alignment", "uint32", "I", 0), "its alignment is 0"),
    "alignment 48": (head(fields=1) + scalar(b"general.alignment", "uint32", "I", 48), "its alignment is 48"),
    "alignment 2**31": (head(fields=1) + scalar(b"general.alignment", "uint32", "I", 2**31), "no power of two"),
    "alignment a text": (head(fields=1) + scalar(b"general.alignment", "string", "Q", 2) + b"32", "no power of two"),
    "five axes": (one(tensor(shape=(1,) * 5)), "5 axes"),
    "endless axes": (one(tensor(axes=2**32 - 1)), "4294967295 axes"),
    "overflowing shape": (one(tensor(shape=(2**63, 4))), "impossible shape"),
    "shape that overflows to 0": (one(tensor(shape=(2**32, 2**32))), "impossible shape"),
    "shape beyond the end": (one(tensor(shape=(2**40,))), "ends at byte"),
    "unknown storage": (one(tensor(storage=99)), "GGML type 99"),
    "removed storage": (one(tensor(storage=4)), "GGML type 4"),
    "half a block": (one(tensor(shape=(48,), storage=8)), "not whole blocks of 32"),
    "odd offset": (one(tensor(offset=8)), "not at a multiple of 32"),
    "offset beyond the end": (one(tensor(offset=2**63)), "ends at byte"),
    "offset that overflows": (one(tensor(offset=2**64 - 32)), "ends at byte"),
    "truncated": (one(tensor())[:-40], "ends at byte"),
    "name of 65 bytes": (one(tensor(name=b"n" * 65)), "has 65 bytes, at most 64"),
    "tensor twice": (two(tensor(), tensor(offset=32)), "the tensor 't' twice"),
    "the same place": (two(tensor(), tensor(b"u")), "overlaps"),
    "a hole": (two(tensor(), tensor(b"u", offset=64)), "a hole before tensor 'u'"),
    "a hole before all": (one(tensor(offset=32), data=96), "a hole before tensor 't'"),
    "more than its tensors": (one(tensor(), data=64), "its last 32 bytes belong to no tensor"),
    "overlap": (two(tensor(shape=(16,)), tensor(b"u", offset=32)), "overlaps"),
    "split into 0 of -1": (head(fields=1) + scalar(b"split.count", "int32", "i", 70_000), "one of 70000 files"),
    "split into a text": (head(fields=1) + scalar(b"split.count", "string", "Q", 1) + b"2", "no whole number"),
}


@pytest.mark.parametrize(("content", "message"), CASES.values(), ids=CASES)
def test_ts4_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(LlamitaError) as caught:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, BrokenFileError | UnsupportedError)
    assert peak < 1_000_000


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="it does not exist"):
        GgufFile(tmp_path / "no.gguf")


@pytest.mark.parametrize("alignment", [1, 2, 64, 4096])
def test_other_alignments_are_read(alignment: int, tmp_path: Path) -> None:
    raw = head(tensors=1, fields=1) + scalar(b"general.alignment", "uint32", "I", alignment) + tensor(shape=(3,))
    raw += bytes(-len(raw) % alignment) + struct.pack("<3f", 1, 2, 3)
    (tmp_path / "odd.gguf").write_bytes(raw)
    assert GgufFile(tmp_path / "odd.gguf").load("t").tolist() == [1, 2, 3]


def test_ts4_every_cut_of_a_good_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    fields = {f"a.{kind}": Field(kind, 1) for kind in KINDS if kind not in ("string", "array", "bool")}
    fields |= {"b": Field("string", ["x", "y"]), "c": Field("bool", True), "d": Field("int16", [1, 2])}
    write_gguf(path, fields, {"t": Piece("f32", (2, 4), lambda: torch.ones(2, 4))})
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(BrokenFileError):
            GgufFile(path)
