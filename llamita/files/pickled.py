"""One old pytorch_model.bin shard, read by torch's weights-only reader and by no pickle machine."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamita.checks import MAX_REASON, quoted, shortened
from llamita.errors import BrokenFileError
from llamita.files.disk import LFS_POINTER, explained


class PickledFile:
    """The tensors of one torch file: a flat dictionary from names to dense tensors, nothing else.

    Files since torch 1.6 (zip archives) are mapped privately, older ones are read into memory.
    Raises BrokenFileError for a damaged file and for one that holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained("read", path):
            self.entries = _checked(_read(path), path)

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU."""
        return self.entries[name]

    def close(self) -> None:
        """Forget the tensors; those handed out live on."""
        self.entries = {}


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(LFS_POINTER):
        raise BrokenFileError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About pickle protocols that the weights-only reader may not know.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise BrokenFileError(
            f"{path} is damaged or holds more than tensors, which could run code: get the checkpoint as safetensors"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # A changed byte can raise nearly anything in zipfile, struct and torch.
        reason = shortened(error, MAX_REASON) or type(error).__name__
        raise BrokenFileError(f"{path} is damaged or truncated ({reason}): download it again") from error


def _checked(value: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise BrokenFileError(f"{path} holds a {type(value).__name__} where a dictionary of tensors is expected")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise BrokenFileError(
                f"{path}: the entry {quoted(name)} is no dense tensor: the file is no model checkpoint"
            )
    return {name: tensor.detach() for name, tensor in value.items()}
