"""Checkpoints written so that a crash at any moment leaves the old one or the new one, never a mix."""

import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from llamita.errors import UnsupportedError, UsageError
from llamita.files.disk import creating, explained, sync_folder, write_json, write_text
from llamita.files.safetensors import DTYPES, write_tensors

__all__ = ["save_checkpoint", "write_json", "write_text"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Our own shards and drafts, of this save or of one that was cut off; never adapters or other people's files.
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?(\.draft-[0-9a-f]{8})?\.safetensors")


def save_checkpoint(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] = {"format": "pt"},  # noqa: B006
    shared: Literal["each", "once"] = "each",
) -> list[Path]:
    """Write tensors as safetensors, in shards with an index where they exceed `max_shard_size`; returns the files.

    A tensor under several names is written under each of them, or with `shared="once"` under the first.
    Memory beyond the tensors: a copy of one tensor, where it is not contiguous or not on the CPU.
    Raises UsageError, UnsupportedError (dtype), AccessError, or LlamitaError where the disk is full;
    the folder then holds what it held before.
    """
    folder = Path(folder)
    chosen = _distinct(tensors) if shared == "once" else dict(tensors)
    _check_writable(chosen)
    shards = _split(chosen, _bytes(max_shard_size))
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    drafts = _write_drafts(shards, folder, metadata)
    return _publish(drafts, shards, folder) if len(shards) > 1 else _publish_single(drafts, folder)


def _publish_single(drafts: Mapping[str, Path], folder: Path) -> list[Path]:
    # Readers look for the single file first, so this one rename is the whole change-over.
    target = folder / SINGLE
    with explained("write", target), _discarded_on_failure(drafts.values()):
        drafts[SINGLE].replace(target)
    _sweep(folder, keep={target})
    return [target]
