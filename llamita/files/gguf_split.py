"""A GGUF checkpoint as its reader wants it: one file, or several that are numbered name-00001-of-00003.gguf."""

import re
from pathlib import Path

from torch import Tensor

from llamita.errors import BrokenFileError
from llamita.files.gguf import Entry, GgufFile
from llamita.files.gguf_types import Field

_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
MAX_FILES = 1000


class Gguf:
    """The metadata of the first file and the tensors of all; a context manager."""

    def __init__(self, parts: list[GgufFile]) -> None:
        self._parts = {name: part for part in parts for name in part.entries}
        self.metadata: dict[str, Field] = parts[0].metadata
        self.paths = [part.path for part in parts]

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the files' order."""
        return list(self._parts)

    def entry(self, name: str) -> Entry:
        """Storage, shape and place of one tensor."""
        return self._parts[name].entries[name]

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU, sharing memory with the file: plain numbers, or blocks as uint8."""
        return self._parts[name].load(name)

    def release(self, name: str) -> None:
        """Give back the memory that a tensor's pages take, until it is read again."""
        self._parts[name].release(name)

    def value(self, key: str, default: object = None) -> object:
        """The value of a metadata field."""
        return self.metadata[key].value if key in self.metadata else default

    def close(self) -> None:
        """Let go of the files; tensors already loaded stay good."""
        for part in self._parts.values():
            part.close()
        self._parts = {}

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __enter__(self) -> "Gguf":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_gguf(path: Path) -> Gguf:
    """Open a GGUF checkpoint by its file, or by any of its numbered files; all of them are checked.

    Raises NotFoundError, AccessError, BrokenFileError for a damaged or incomplete one, UnsupportedError.
    """
    file = GgufFile(Path(path))
    count = _number(file, "split.count", default=1)
    if count <= 1:
        return Gguf([file])
    if count > MAX_FILES:
        raise BrokenFileError(f"{path} says that it is one of {count} files: at most {MAX_FILES} are allowed")
    parts = [_part(sibling, index, count) for index, sibling in enumerate(_siblings(file.path, count))]
    names = [name for part in parts for name in part.entries]
    if len(set(names)) != len(names):
        raise BrokenFileError(f"a tensor is in two of the {count} files of {path}: download them again")
    return Gguf(parts)


def _siblings(path: Path, count: int) -> list[Path]:
    found = _NUMBERED.fullmatch(path.name)
    if found is None or int(found[3]) != count:
        raise BrokenFileError(
            f"{path} is one of {count} files, but is not named as such (name-00001-of-{count:05d}.gguf): "
            "give the files their names back"
        )
    siblings = [path.with_name(f"{found[1]}-{index:05d}-of-{count:05d}.gguf") for index in range(1, count + 1)]
    missing = next((sibling for sibling in siblings if not sibling.exists()), None)
    if missing is not None:
        raise BrokenFileError(f"{path} is one of {count} files, and {missing.name} is missing: download it too")
    return siblings


def _part(path: Path, index: int, count: int) -> GgufFile:
    part = GgufFile(path)
    if (_number(part, "split.no"), _number(part, "split.count")) != (index, count):
        raise BrokenFileError(f"{path} is not file {index + 1} of {count}, as its name says: download it again")
    return part


def _number(file: GgufFile, key: str, default: int = -1) -> int:
    value = file.metadata[key].value if key in file.metadata else default
    if isinstance(value, bool) or not isinstance(value, int):
        raise BrokenFileError(f"{file.path} is damaged: {key} is no whole number")
    return value
