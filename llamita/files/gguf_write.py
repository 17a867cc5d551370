"""A GGUF file written whole or not at all, its tensors made one after the other."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.errors import UsageError
from llamita.files.disk import explained, replacing
from llamita.files.gguf_types import ALIGNMENT, KINDS, MAGIC, MAX_NAME, NUMBERS, STORAGES, VERSIONS, Field


@dataclass(frozen=True)
class Piece:
    """A tensor to write: the name of its storage, its shape, and a function that makes it.

    `make` gives the plain numbers in the storage's dtype, or the blocks' bytes as uint8.
    """

    storage: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return STORAGES[self.storage].size(self.shape)


def write_gguf(path: Path, metadata: Mapping[str, Field], pieces: Mapping[str, Piece]) -> None:
    """Write a GGUF file of version 3: a reader sees the old file or the new one, never a part.

    At most one tensor is made at a time.
    Raises UsageError for what the format cannot hold, AccessError, or LlamitaError where the disk is full.
    """
    for name, piece in pieces.items():
        _check(name, piece)
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _write_header(file, metadata, pieces)
        for name, piece in pieces.items():
            _write_tensor(file, name, piece)


def _check(name: str, piece: Piece) -> None:
    if len(name.encode()) >= MAX_NAME:  # ggml stores a zero byte after it
        raise UsageError(
            f"tensor name {quoted(name)} has {len(name.encode())} bytes: GGUF allows at most {MAX_NAME - 1}"
        )
    if len(piece.shape) > 4:
        raise UsageError(f"tensor {quoted(name)} has {len(piece.shape)} axes: GGUF allows at most 4")
    block = STORAGES[piece.storage].block
    if block > 1 and (not piece.shape or piece.shape[-1] % block):
        raise UsageError(f"rows of tensor {quoted(name)}, of shape {piece.shape}, are not whole {piece.storage} blocks")


def _write_header(file: BinaryIO, metadata: Mapping[str, Field], pieces: Mapping[str, Piece]) -> None:
    file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(pieces), len(metadata)))
    for key, field in metadata.items():
        file.write(_text(key) + _packed(key, field))
    offset = 0
    for name, piece in pieces.items():
        shape = piece.shape[::-1]  # the file has the fastest axis first
        number = STORAGES[piece.storage].number
        file.write(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset))
        offset += piece.nbytes + -piece.nbytes % ALIGNMENT
    _pad(file)


def _write_tensor(file: BinaryIO, name: str, piece: Piece) -> None:
    flat = piece.make().detach().to("cpu").contiguous().reshape(-1)
    expected = STORAGES[piece.storage].dtype or torch.uint8
    assert (flat.dtype, flat.nbytes) == (expected, piece.nbytes), (name, piece, flat.dtype, flat.nbytes)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
    _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _packed(key: str, field: Field) -> bytes:
    """A field's kind and value; a list is an array, which says its items' kind once."""
    try:
        if not isinstance(field.value, list):
            return struct.pack("<I", NUMBERS[field.kind]) + _value(field.kind, field.value)
        head = struct.pack("<IIQ", NUMBERS["array"], NUMBERS[field.kind], len(field.value))
        if field.kind == "string":
            return head + b"".join(map(_text, field.value))
        return head + struct.pack(f"<{len(field.value)}{KINDS[field.kind]}", *field.value)
    except (struct.error, OverflowError, AttributeError, UnicodeEncodeError) as error:
        raise UsageError(f"the field {quoted(key)} cannot be written as {field.kind}: {error}") from error


def _value(kind: str, value: Any) -> bytes:
    return _text(value) if kind == "string" else struct.pack(f"<{KINDS[kind]}", value)


def _text(text: Any) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
