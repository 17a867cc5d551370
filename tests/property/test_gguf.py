"""Whatever bytes stand in a GGUF file: it is read within its bounds, or refused in one sentence."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamita.errors import BrokenFileError, UnsupportedError
from llamita.files.gguf import GgufFile
from llamita.files.gguf_types import KINDS, STORAGES, Field
from llamita.files.gguf_write import Piece, write_gguf

RANGES = {"uint8": (0, 8), "int8": (7, 7), "uint16": (0, 16), "int16": (15, 15), "uint32": (0, 32), "int32": (31, 31)}
RANGES |= {"uint64": (0, 64), "int64": (63, 63)}
NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
PLAIN = {name: storage for name, storage in STORAGES.items() if storage.dtype is not None}


def values(kind: str) -> st.SearchStrategy:
    if kind in RANGES:
        low, high = RANGES[kind]
        return st.integers(-(2**low) if low else 0, 2**high - 1)
    if kind == "float32":
        return st.floats(width=32, allow_nan=False)
    if kind == "float64":
        return st.floats(allow_nan=False)
    return st.booleans() if kind == "bool" else NAMES


def fields() -> st.SearchStrategy:
    kinds = st.sampled_from([kind for kind in KINDS if kind != "array"])
    return kinds.flatmap(lambda kind: st.builds(Field, st.just(kind), values(kind) | st.lists(values(kind))))


def contents() -> st.SearchStrategy:
    """Names to (storage, blocks of each row, bytes)."""
    storages = st.sampled_from(sorted(STORAGES))
    rows = st.lists(st.integers(0, 4), max_size=4)
    return st.dictionaries(NAMES, st.tuples(storages, rows, st.integers(0, 255)), max_size=4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("gguf")
    return (folder / f"{number}.gguf" for number in itertools.count())


@given(metadata=st.dictionaries(NAMES, fields(), max_size=6), described=contents())
def test_what_is_written_is_read(metadata: dict, described: dict, places) -> None:
    metadata.pop("general.alignment", None)
    path: Path = next(places)
    pieces, raws = {}, {}
    for name, (kind, rows, byte) in described.items():
        storage = STORAGES[kind]
        shape = (*rows[:-1], rows[-1] * storage.block) if rows else (storage.block,)
        raws[name] = torch.full((storage.size(shape),), byte, dtype=torch.uint8)
        pieces[name] = Piece(kind, shape, lambda raw=raws[name], dtype=storage.dtype: raw.view(dtype or torch.uint8))
    write_gguf(path, metadata, pieces)
    file = GgufFile(path)
    assert file.metadata == metadata
    assert [(entry.storage, entry.shape) for entry in file.entries.values()] == [
        (piece.storage, piece.shape) for piece in pieces.values()
    ]
    for name, raw in raws.items():
        assert torch.equal(file.load(name).contiguous().view(-1).view(torch.uint8), raw)
    path.unlink()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.gguf"
    metadata = {
        "general.architecture": Field("string", "llama"),
        "general.alignment": Field("uint32", 32),
        "tokens": Field("string", ["a", "bc", "def"]),
        "scores": Field("float32", [0.5, 1.5]),
        "flag": Field("bool", False),
        "count": Field("uint64", 7),
    }
    pieces = {
        "a.weight": Piece("f32", (2, 3), lambda: torch.ones(2, 3)),
        "b.weight": Piece("q8_0", (2, 32), lambda: torch.ones(2, 34, dtype=torch.uint8)),
        "c.weight": Piece("bf16", (5,), lambda: torch.ones(5).bfloat16()),
    }
    write_gguf(path, metadata, pieces)
    return path.read_bytes()


def read_or_refused(path: Path, content: bytes) -> bool:
    """Read everything in a file, or be told why not; nothing else may happen."""
    path.write_bytes(content)
    try:
        file = GgufFile(path)
    except (BrokenFileError, UnsupportedError) as error:
        assert "\n" not in str(error).replace(str(path), "")
        return False
    for name, entry in file.entries.items():
        assert 0 <= entry.start <= entry.stop <= len(content)
        assert file.load(name).nbytes == entry.stop - entry.start
    path.unlink()
    return True


def test_the_good_one_is_good(good: bytes, places) -> None:
    assert read_or_refused(next(places), good)


@settings(max_examples=600)
@given(data=st.data())
def test_changed_bytes(data: st.DataObject, good: bytes, places) -> None:
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    read_or_refused(next(places), bytes(changed))


@settings(max_examples=300)
@given(data=st.data())
def test_changed_numbers(data: st.DataObject, good: bytes, places) -> None:
    """Eight bytes at once, near the limits of integers: what hostile files are made of."""
    number = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]))
    place = data.draw(st.integers(4, len(good) - 8))
    read_or_refused(next(places), good[:place] + number.to_bytes(8, "little") + good[place + 8 :])


@settings(max_examples=200)
@given(tail=st.binary(max_size=200), cut=st.integers(0, 600))
def test_other_ends(tail: bytes, cut: int, good: bytes, places) -> None:
    read_or_refused(next(places), good[:cut] + tail)
