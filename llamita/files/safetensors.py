"""One safetensors file: its header checked before anything is believed, its tensors mapped and never copied."""

import json
import math
import mmap
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llamita.checks import MAX_REASON, parsed_json, quoted, shortened, unique
from llamita.errors import BrokenFileError, MemoryShortError
from llamita.files.disk import LFS_POINTER, explained

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_ITEMS = 2**48  # numbers in one tensor
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (a torch .bin or .pt file?)",
    b"GGUF": "a GGUF file",
    b"<!DO": "a web page",
    b"<htm": "a web page",
    b"\x80\x02": "a pickle",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in its file: dtype, shape, and bytes [start, stop) after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """The tensors of one safetensors file.

    The mapping is private: a tensor may be written to, and the file never changes.
    It lives as long as any of its tensors, so `close` only forgets it. A file may be replaced while it is mapped,
    as `save_checkpoint` does; one that another program cuts short in place takes the process with it (SIGBUS).
    Raises BrokenFileError for any file that is not exactly a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained("read", path), path.open("rb") as file:
            self._base, self.entries = read_header(file, path)
            self._map = _private_map(file, path)

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU, sharing memory with the file's pages."""
        entry = self.entries[name]
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=entry.dtype)
        start = self._base + entry.start
        if start % entry.dtype.itemsize:  # Legal but rare; torch needs aligned memory, so this one is copied.
            raw = bytearray(self._map[start : self._base + entry.stop])
            return torch.frombuffer(raw, dtype=entry.dtype).view(entry.shape)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=start).view(entry.shape)

    def close(self) -> None:
        """Forget the mapping. Unmapping it here would pull the memory away under living tensors."""
        self._map = b""
        self.entries = {}


def read_header(file: BinaryIO, path: Path) -> tuple[int, dict[str, Entry]]:
    """The offset of the data and the entry of every tensor, once the whole header has been checked.

    Raises BrokenFileError for a damaged header, and for files of other formats.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER or head[8:9] != b"{":  # the length of a header may have the bytes of another format's mark
        _refuse_other_formats(head, path)
    if length > MAX_HEADER:
        raise BrokenFileError(f"{path} is not a safetensors file: its first 8 bytes announce a {length}-byte header")
    if 8 + length > size:
        raise BrokenFileError(f"{path} is truncated: {size} bytes do not hold its header of {length} bytes")
    file.seek(8)
    header = _parse(file.read(length), path)
    entries = {name: _entry(name, fields, path) for name, fields in header.items() if name != "__metadata__"}
    _check_layout(entries, size - 8 - length, path)
    return 8 + length, entries


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a file's header, after a check of the whole header."""
    with explained("read", path), path.open("rb") as file:
        base, _ = read_header(file, path)
        file.seek(8)
        return _parse(file.read(base - 8), path).get("__metadata__", {})


def write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    fetch: Callable[[Tensor], Tensor] = Tensor.detach,
) -> None:
    """Write a safetensors file, with no more than one tensor's copy in memory at a time.

    fetch: gives the numbers of a tensor, at the moment when they are written, in the order of `in_order`.
    """
    assert sys.byteorder == "little", "safetensors files are little-endian"
    names = in_order(tensors)
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for name in names:
        start, stop = stop, stop + tensors[name].nbytes
        header[name] = {
            "dtype": codes[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, stop],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in names:
        flat = fetch(tensors[name]).detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy().data)


def in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names in the order of a file: wide dtypes first, so that every tensor stays aligned to its item size."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _refuse_other_formats(head: bytes, path: Path) -> None:
    if head.startswith(LFS_POINTER):
        raise BrokenFileError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
    for magic, kind in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise BrokenFileError(f"{path} is {kind}, not a safetensors file: download it again")
    if len(head) < 8:
        what = "empty" if not head else "too short to be a safetensors file"
        raise BrokenFileError(f"{path} is {what}: download it again")


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parsed_json(raw.decode(), unique)
    except ValueError as error:
        raise BrokenFileError(
            f"{path} has a damaged header ({shortened(error, MAX_REASON)}): download it again"
        ) from error
    if not isinstance(header, dict):
        raise BrokenFileError(f"{path} has a damaged header (it is no JSON object): download it again")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenFileError(f"{path} has a damaged header (__metadata__ may hold only strings): download it again")
    return header


def _entry(name: str, fields: Any, path: Path) -> Entry:
    try:
        code, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError) as error:
        raise BrokenFileError(f"{path}: the header's entry for {quoted(name)} is damaged: download it again") from error
    if not isinstance(code, str) or code not in DTYPES:
        raise BrokenFileError(
            f"{path}: tensor {quoted(name)} has the unknown dtype {quoted(code)}, known are {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise BrokenFileError(
            f"{path}: tensor {quoted(name)} has an impossible shape or place: {quoted(shape)}, {quoted([start, stop])}"
        )
    dtype = DTYPES[code]
    if math.prod(shape) * dtype.itemsize != stop - start:
        raise BrokenFileError(
            f"{path}: tensor {quoted(name)}, {code} of shape {quoted(shape)}, cannot take {quoted(stop - start)} bytes"
        )
    # An axis of 0 counts as 1 here: torch multiplies the other axes all the same.
    if math.prod(max(axis, 1) for axis in shape) >= MAX_ITEMS:
        raise BrokenFileError(
            f"{path}: tensor {quoted(name)} has an impossible shape or place: {quoted(shape)}, {quoted([start, stop])}"
        )
    return Entry(dtype, tuple(shape), start, stop)


def _check_layout(entries: Mapping[str, Entry], size: int, path: Path) -> None:
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != reached:
            what = "overlaps the tensor before it" if entry.start < reached else "leaves a hole before it"
            raise BrokenFileError(f"{path}: tensor {quoted(name)} {what}: the file is damaged, download it again")
        reached = entry.stop
    if reached > size:
        raise BrokenFileError(f"{path} is truncated: {size} bytes of tensors where its header promises {reached}")
    if reached < size:
        raise BrokenFileError(f"{path} has {size - reached} bytes that belong to no tensor: download it again")


def _private_map(file: BinaryIO, path: Path) -> mmap.mmap | bytes:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except MemoryError as error:
        raise MemoryShortError(f"the address space is too small to map {path}: close other programs") from error
