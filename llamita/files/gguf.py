"""One GGUF file: metadata and tensors, every number in it checked before it is believed, nothing copied."""

import math
import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.errors import BrokenFileError, MemoryShortError, UnsupportedError
from llamita.files.disk import LFS_POINTER, explained
from llamita.files.gguf_cursor import MAX_HEADER, Cursor
from llamita.files.gguf_types import ALIGNMENT, KINDS, MAGIC, MAX_NAME, STORAGES, VERSIONS, Field, Storage

MAX_ITEMS = 4_194_304  # in all arrays together, so that a small file cannot become a large list
MAX_FIELDS, MAX_TENSORS = 65_536, 100_000
MAX_KEY = 65_535  # bytes, the format's own limit
MAX_ALIGNMENT = 4096
MAX_AXES = 4
_KIND_NAMES = tuple(KINDS)
_STORAGE_NAMES = {storage.number: name for name, storage in STORAGES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: its storage by name, its shape in torch's order, and bytes [start, stop) of the file."""

    storage: str
    shape: tuple[int, ...]
    start: int
    stop: int


class GgufFile:
    """The metadata and the tensors of one GGUF file, version 2 or 3.

    The mapping is private: a tensor may be written to, and the file never changes. It lives as long as any of its
    tensors, so `close` only forgets it. What a tensor means is not known here: blocks are bytes.
    Raises BrokenFileError for a damaged or hostile file, UnsupportedError for what this build does not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        assert sys.byteorder == "little", "GGUF files are little-endian"
        self._map = _mapped(path)
        cursor = Cursor(self._map, path)
        fields, tensors = _counts(cursor)
        self.metadata = dict(_fields(cursor, fields))
        self.entries = _entries(cursor, tensors, _alignment(self.metadata, path))

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU, sharing memory with the file's pages.

        Plain numbers have their dtype and shape (..., K); blocks are uint8 (..., bytes of a row).
        """
        entry = self.entries[name]
        storage = STORAGES[entry.storage]
        dtype = storage.dtype or torch.uint8
        shape = entry.shape if storage.dtype else (*entry.shape[:-1], entry.shape[-1] // storage.block * storage.nbytes)
        if entry.start == entry.stop:
            return torch.empty(shape, dtype=dtype)
        if entry.start % dtype.itemsize:  # An alignment below the item's size is legal, and torch cannot map it.
            return torch.frombuffer(bytearray(self._map[entry.start : entry.stop]), dtype=dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape), offset=entry.start).view(shape)

    def release(self, name: str) -> None:
        """Give back the memory that a tensor's pages take: they are read from the file again where they are used."""
        entry, page = self.entries[name], mmap.PAGESIZE
        start, stop = -(-entry.start // page) * page, entry.stop // page * page
        if stop > start and hasattr(mmap, "MADV_DONTNEED") and isinstance(self._map, mmap.mmap):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Forget the mapping. Unmapping it here would pull the memory away under living tensors."""
        self._map = b""
        self.entries = {}


def _mapped(path: Path) -> mmap.mmap:
    """The file's pages, once it looks like GGUF."""
    with explained("read", path), path.open("rb") as file:
        head = file.read(64)
        if head.startswith(LFS_POINTER):
            raise BrokenFileError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
        if not head.startswith(MAGIC):
            what = "is empty" if not head else "does not begin as a GGUF file does"
            raise BrokenFileError(f"{path} {what}: download it again")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except MemoryError as error:
            raise MemoryShortError(f"the address space is too small to map {path}: close other programs") from error


def _counts(cursor: Cursor) -> tuple[int, int]:
    """How many fields and tensors the header announces, from its first 24 bytes."""
    cursor.skip(len(MAGIC), "the magic")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise UnsupportedError(f"{cursor.path} is a {kind} GGUF file: only little-endian versions 2 and 3 are read")
    tensors, fields = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of fields")
    left = cursor.size - cursor.position
    for count, what, least, most in ((fields, "fields", 13, MAX_FIELDS), (tensors, "tensors", 24, MAX_TENSORS)):
        if count > min(most, left // least):
            cursor.refuse(f"is truncated or damaged: it announces {count} {what}, and its size leaves no room for them")
    return fields, tensors


def _fields(cursor: Cursor, count: int) -> Iterator[tuple[str, Field]]:
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY)
        if key in seen:
            cursor.refuse(f"is damaged: it has the key {quoted(key)} twice")
        seen.add(key)
        kind = _kind(cursor, key)
        if kind != "array":
            yield key, Field(kind, _value(cursor, kind, key))
            continue
        kind = _kind(cursor, key)
        if kind == "array":
            raise UnsupportedError(
                f"{cursor.path}: the field {quoted(key)} is an array of arrays, which no Llama needs"
            )
        yield key, Field(kind, _array(cursor, kind, key))


def _kind(cursor: Cursor, key: str) -> str:
    number = cursor.number("I", f"the kind of {quoted(key)}")
    if number >= len(_KIND_NAMES):
        cursor.refuse(f"is damaged: the field {quoted(key)} is of the unknown kind {number}")
    return _KIND_NAMES[number]


def _value(cursor: Cursor, kind: str, key: str) -> Any:
    if kind == "string":
        return cursor.text(f"the field {quoted(key)}")
    if kind != "bool":
        return cursor.number(KINDS[kind], f"the field {quoted(key)}")
    return _truth(cursor, [cursor.number("B", f"the field {quoted(key)}")], key)[0]


def _array(cursor: Cursor, kind: str, key: str) -> list[Any]:
    count = cursor.number("Q", f"the length of {quoted(key)}")
    cursor.items += count
    if cursor.items > MAX_ITEMS:
        cursor.refuse(
            f"is damaged: with {quoted(key)} its arrays have {cursor.items} items, at most {MAX_ITEMS} are allowed"
        )
    if kind == "string":
        return _texts(cursor, count, key)
    letter = "B" if kind == "bool" else KINDS[kind]
    start = cursor.skip(count * struct.calcsize(f"<{letter}"), f"the field {quoted(key)}")
    values = list(struct.unpack_from(f"<{count}{letter}", cursor.data, start))
    return _truth(cursor, values, key) if kind == "bool" else values


def _texts(cursor: Cursor, count: int, key: str) -> list[str]:
    """Many strings in one loop: a vocabulary has hundreds of thousands."""
    start = cursor.position
    if count * 8 > cursor.size - start:
        cursor.refuse(f"is truncated or damaged: {quoted(key)} has {count} strings, more than the file has room for")
    data, position, limit = cursor.data, start, min(cursor.size, MAX_HEADER)
    length_at = struct.Struct("<Q").unpack_from
    texts = []
    try:
        for _ in range(count):
            (length,) = length_at(data, position)
            begin = position + 8
            position = begin + length
            if position > limit:
                raise struct.error
            texts.append(data[begin:position].decode())
    except (struct.error, UnicodeDecodeError):
        cursor.refuse(f"is truncated or damaged: string {len(texts)} of {quoted(key)} does not end or is not UTF-8")
    cursor.position = position
    return texts


def _truth(cursor: Cursor, values: list[int], key: str) -> list[bool]:
    if any(value > 1 for value in values):
        cursor.refuse(f"is damaged: the field {quoted(key)} is neither true nor false")
    return [bool(value) for value in values]


def _alignment(metadata: dict[str, Field], path: Path) -> int:
    field = metadata.get("general.alignment", Field("uint32", ALIGNMENT))
    value = field.value
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise BrokenFileError(
            f"{path} is damaged: its alignment is {quoted(value)}, which is no power of two up to {MAX_ALIGNMENT}"
        )
    return value


def _entries(cursor: Cursor, count: int, alignment: int) -> dict[str, Entry]:
    """Where every tensor lies, checked to be inside the file and apart from all others."""
    tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for _ in range(count):
        name = cursor.text("the name of a tensor", MAX_NAME)
        if name in tensors:
            cursor.refuse(f"is damaged: it has the tensor {quoted(name)} twice")
        tensors[name] = _tensor_info(cursor, name)
    base = -(-cursor.position // alignment) * alignment
    entries = {}
    for name, (storage, shape, offset) in tensors.items():
        if offset % alignment:
            cursor.refuse(f"is damaged: tensor {quoted(name)} lies at {offset}, not at a multiple of {alignment}")
        start = base + offset
        stop = start + STORAGES[storage].size(shape)
        if stop > cursor.size:
            cursor.refuse(f"is truncated or damaged: tensor {quoted(name)} ends at byte {stop} of {cursor.size}")
        entries[name] = Entry(storage, shape, start, stop)
    _check_layout(cursor, entries, base, alignment)
    return entries


def _check_layout(cursor: Cursor, entries: dict[str, Entry], base: int, alignment: int) -> None:
    """Check that tensors follow each other without holes, as in GGML: a changed type or shape would leave one."""
    reached = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < reached:
            cursor.refuse(f"is damaged: tensor {quoted(name)} overlaps the tensor before it")
        if entry.start - reached >= alignment:
            cursor.refuse(f"is damaged: there is a hole before tensor {quoted(name)}")
        reached = entry.stop
    if entries and cursor.size - reached >= alignment:
        cursor.refuse(f"is damaged: its last {cursor.size - reached} bytes belong to no tensor")


def _tensor_info(cursor: Cursor, name: str) -> tuple[str, tuple[int, ...], int]:
    """A tensor's storage, shape and offset."""
    what = f"the tensor {quoted(name)}"
    axes = cursor.number("I", what)
    if axes > MAX_AXES:
        cursor.refuse(f"is damaged: tensor {quoted(name)} has {axes} axes, at most {MAX_AXES} are allowed")
    shape = tuple(cursor.number("Q", what) for _ in range(axes))[::-1]  # the file has the fastest axis first
    number, offset = cursor.number("I", what), cursor.number("Q", what)
    if number not in _STORAGE_NAMES:
        raise UnsupportedError(
            f"{cursor.path}: tensor {quoted(name)} is of GGML type {number}, which is not known here"
        )
    storage = _STORAGE_NAMES[number]
    _check_rows(cursor, name, shape, STORAGES[storage])
    return storage, shape, offset


def _check_rows(cursor: Cursor, name: str, shape: tuple[int, ...], storage: Storage) -> None:
    # An axis of 0 counts as 1 here: torch multiplies the other axes all the same.
    if math.prod(max(axis, 1) for axis in shape) >= 2**48:
        cursor.refuse(f"is damaged: tensor {quoted(name)} has the impossible shape {shape}")
    if (shape[-1] if shape else 1) % storage.block:
        cursor.refuse(
            f"is damaged: rows of {shape[-1:]} in tensor {quoted(name)} are not whole blocks of {storage.block}"
        )
