"""A checkpoint folder, opened: every shard found and checked, its tensors read by name."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llamita.checks import quoted, shortened
from llamita.errors import BrokenFileError, NotFoundError
from llamita.files.disk import explained, read_json
from llamita.files.pickled import PickledFile
from llamita.files.safetensors import SafetensorsFile


class Described(Protocol):
    """A tensor, or what a header says of one."""

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


class Shard(Protocol):
    """One file of tensors, already checked."""

    path: Path

    @property
    def entries(self) -> Mapping[str, Described]:
        """What the file holds, by name."""
        ...

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU."""
        ...

    def close(self) -> None:
        """Let go of the file; tensors already loaded stay good."""
        ...


MAX_NAME = 255  # bytes of a file's name, in all file systems
# The order of the search: the first that is there is the checkpoint.
READERS: Mapping[str, Callable[[Path], Shard]] = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors.index.json": SafetensorsFile,
    "pytorch_model.bin": PickledFile,
    "pytorch_model.bin.index.json": PickledFile,
}


class TensorFiles:
    """The tensors of a checkpoint by name, each loaded when asked for; a context manager."""

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        self._shards = dict(shards)

    @property
    def names(self) -> list[str]:
        """The tensors' names, in the files' order."""
        return list(self._shards)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(dict.fromkeys(shard.path for shard in self._shards.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without loading it."""
        return tuple(self._entry(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without loading it."""
        return self._entry(name).dtype

    def load(self, name: str, device: str | torch.device = "cpu") -> Tensor:
        """One tensor: on the CPU the file's own pages, mapped privately (writing never reaches the file)."""
        self._entry(name)
        return self._shards[name].load(name).to(device)

    def close(self) -> None:
        """Let go of the files; tensors already loaded stay good."""
        for shard in self._shards.values():
            shard.close()
        self._shards = {}

    def _entry(self, name: str) -> Described:
        if name not in self._shards:
            raise KeyError(f"the checkpoint holds no tensor {quoted(name)}")
        return self._shards[name].entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shards

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_checkpoint(folder: Path) -> TensorFiles:
    """Open the weights in a folder, all of them checked.

    Raises NotFoundError where there are none, BrokenFileError for a damaged, incomplete or hostile checkpoint.
    """
    folder = Path(folder)
    with explained("read", folder):
        if not folder.is_dir():
            what = "it is a file, give its folder" if folder.exists() else "it does not exist"
            raise NotFoundError(f"no checkpoint folder at {folder}: {what}")
        found = next((name for name in READERS if (folder / name).exists()), None)
    if found is None:
        raise NotFoundError(f"no weights in {folder}: looked for {', '.join(READERS)}")
    if found.endswith(".index.json"):
        return TensorFiles(_sharded(folder / found, READERS[found]))
    shard = READERS[found](folder / found)
    return TensorFiles(dict.fromkeys(shard.entries, shard))


def _sharded(index: Path, read: Callable[[Path], Shard]) -> dict[str, Shard]:
    weight_map = read_json(index).get("weight_map")
    named = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
    if not named or not weight_map:
        raise BrokenFileError(f"{index} has no weight_map of tensor names to files: download it again")
    suffix = ".safetensors" if read is SafetensorsFile else ".bin"
    shards: dict[str, Shard] = {}
    for file in dict.fromkeys(weight_map.values()):
        # Only the name is checked, not the target of a link: the hub's cache is made of links.
        if not file.endswith(suffix) or any(mark in file for mark in "/\\\0:") or len(file.encode()) > MAX_NAME:
            raise BrokenFileError(
                f"{index} names {quoted(file)}, which is no {suffix} file of its folder: do not trust it"
            )
        if not (index.parent / file).exists():
            raise BrokenFileError(
                f"{index} names the shard {shortened(file)}, which is not in the folder: download it again"
            )
        shards[file] = read(index.parent / file)
    for name, file in weight_map.items():
        if name not in shards[file].entries:
            raise BrokenFileError(
                f"{index} says that {shortened(file)} holds {quoted(name)}, which it does not: download both again"
            )
    return {name: shards[file] for name, file in weight_map.items()}
