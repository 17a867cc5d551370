"""Write checkpoints so that a crash at any moment leaves the old one or the new one, never a mix."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from llamita.checks import quoted
from llamita.errors import LlamitaError, UnsupportedError, UsageError
from llamita.files.disk import creating, explained, sync_folder, write_json, write_text
from llamita.files.safetensors import DTYPES, write_tensors

__all__ = ["save_checkpoint", "write_json", "write_text"]

Shards = Mapping[str, Mapping[str, Tensor]]  # file name -> tensor name -> tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Weights and drafts that we wrote, in this save or in one that was cut off; never adapters or other people's files.
_OURS = re.compile(
    r"model(-\d{5}-of-\d{5})?(\.draft-[0-9a-f]{8})?\.safetensors|\.model\.safetensors\.index\.json\.[0-9a-f]{8}\.tmp"
)


def save_checkpoint(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"}),
    shared: Literal["each", "once"] = "each",
) -> list[Path]:
    """Write tensors as safetensors, in shards with an index where they exceed `max_shard_size`; returns the files.

    A tensor under several names is written under each of them, or with `shared="once"` under the first.
    Memory beyond the tensors: a copy of one tensor, where it is not contiguous or not on the CPU.
    Raises UsageError, UnsupportedError (dtype), AccessError, or LlamitaError where the disk is full;
    the folder then still holds its old checkpoint.
    """
    folder = Path(folder)
    limit = _bytes(max_shard_size)
    _check(tensors)
    shards = _split(_distinct(tensors) if shared == "once" else tensors, limit)
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    drafts = _write_drafts(shards, folder, metadata)
    return _publish_single(drafts[SINGLE]) if SINGLE in shards else _publish_shards(shards, drafts)


def _write_drafts(shards: Shards, folder: Path, metadata: Mapping[str, str]) -> dict[str, Path]:
    token = secrets.token_hex(4)
    drafts = {name: folder / name.replace(".safetensors", f".draft-{token}.safetensors") for name in shards}
    with _discarded_on(BaseException, drafts.values()):
        for name, draft in drafts.items():
            with creating(draft, folder / name) as file:
                write_tensors(file, shards[name], metadata)
        sync_folder(folder)
    return drafts


def _publish_single(draft: Path) -> list[Path]:
    # Readers look for the single file first, so this rename is the whole change-over.
    target = draft.with_name(SINGLE)
    with _discarded_on(BaseException, [draft]), explained("write", target):
        draft.replace(target)
        sync_folder(target.parent)
    _sweep(target.parent, keep=[target])
    return [target]


def _publish_shards(shards: Shards, drafts: Mapping[str, Path]) -> list[Path]:
    # The old index may name the very files that must take the new shards' names. So the new index first names the
    # drafts (where there is no single file, this is the change-over), and only then do the drafts get their names.
    index = next(iter(drafts.values())).with_name(INDEX)
    with _discarded_on(Exception, drafts.values()):  # Not on an interrupt: the index may be in place already.
        _write_index(index, shards, drafts)
    with explained("remove", index.with_name(SINGLE)):
        index.with_name(SINGLE).unlink(missing_ok=True)  # Readers prefer it: where it was, this is the change-over.
        sync_folder(index.parent)
    files = drafts
    with suppress(OSError, LlamitaError):  # Without hard links the drafts' names stay: a valid checkpoint as well.
        files = _named(shards, drafts, index)
    _sweep(index.parent, keep=[index, *files.values()])
    return list(files.values())


def _named(shards: Shards, drafts: Mapping[str, Path], index: Path) -> dict[str, Path]:
    files = {name: index.with_name(name) for name in drafts}
    for name, file in files.items():
        file.unlink(missing_ok=True)
        os.link(drafts[name], file)
    _write_index(index, shards, files)
    return files


def _write_index(index: Path, shards: Shards, files: Mapping[str, Path]) -> None:
    size = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {tensor: files[name].name for name, shard in shards.items() for tensor in shard}
    write_json(index, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})


def _sweep(folder: Path, *, keep: Iterable[Path]) -> None:
    """Remove weights that no longer count; one that cannot be removed does no harm."""
    names = {path.name for path in keep}
    stale = [path for path in folder.iterdir() if path.name == INDEX or _OURS.fullmatch(path.name)]
    for path in sorted(stale, key=lambda path: path.name != INDEX):  # The index before the shards that it names.
        if path.name not in names:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _discarded_on(kind: type[BaseException], paths: Iterable[Path]) -> Iterator[None]:
    try:
        yield
    except kind:
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _split(tensors: Mapping[str, Tensor], limit: int) -> Shards:
    """Fill shards in order, none above the limit except by a single tensor."""
    shards: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, start=1)}


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[object] = set()
    kept = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            kept[name] = tensor
        seen.add(place)
    return kept


def _check(tensors: Mapping[str, Tensor]) -> None:
    writable = set(DTYPES.values())
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UsageError(
                f"tensor {quoted(name)} is on the meta device and has no data: load the model before saving it"
            )
        if tensor.dtype not in writable or tensor.layout != torch.strided:
            raise UnsupportedError(
                f"tensor {quoted(name)} is {tensor.dtype}, {tensor.layout}: safetensors cannot hold it"
            )


def _bytes(size: int | str) -> int:
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    count = float(parts[1]) * UNITS.get(parts[2].upper(), 0) if parts else 0
    if count < 1:
        raise UsageError(f"max_shard_size is {quoted(size)}: give a number of bytes, or one such as 500MB, 5GB or 2GiB")
    return int(count)
