"""Caches on disk: one safetensors file each, bound to the model whose keys and values they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.cache.offloaded import OffloadedCache
from llamita.cache.quantized import Blocks, QuantizedCache
from llamita.cache.sink import SinkCache
from llamita.cache.sliding import SlidingWindowCache
from llamita.cache.static import StaticCache
from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import replacing
from llamita.files.safetensors import SafetensorsFile, read_metadata, write_tensors

FORMAT = "llamita-cache-1"
PARTS = ("codes", "scale", "low")  # of Blocks

# The name of each kind in a file, and the arguments to make an empty one again.
KINDS: Mapping[str, tuple[type[Cache], tuple[str, ...]]] = {
    "dynamic": (DynamicCache, ("unrotated",)),
    "static": (StaticCache, ("unrotated",)),
    "sliding": (SlidingWindowCache, ("window", "unrotated")),
    "sink": (SinkCache, ("window", "sinks")),
    "quantized": (QuantizedCache, ("bits", "group", "residual", "unrotated")),
    "offloaded": (OffloadedCache, ("unrotated",)),
    "growing": (GrowingCache, ("unrotated",)),
}


def save(cache: Cache, path: Path, *, fingerprint: str, note: str = "") -> None:
    """Write a cache, whole or not at all; `fingerprint` names its model (`llamita.model.fingerprint`).

    note: what `note_of` is to tell of it, such as its text. Raises UsageError for a cache that is no kind of this
    package; AccessError, or LlamitaError where the disk is full.
    """
    kind = next((name for name, (cls, _) in KINDS.items() if type(cache) is cls), None)
    if kind is None:
        raise UsageError(f"a {type(cache).__name__} cannot be saved: only {', '.join(KINDS)} caches can")
    facts = {name: getattr(cache, name) for name in KINDS[kind][1]}
    facts |= {"layers": len(cache), "seen": getattr(cache, "_seen", []), "capacity": cache.capacity}
    about = {"format": FORMAT, "kind": kind, "fingerprint": fingerprint, "facts": json.dumps(facts), "note": note}
    with replacing(Path(path)) as file:
        write_tensors(file, _tensors(cache), about)


def note_of(path: Path) -> str:
    """What was noted when the cache in a file was saved; its errors are those of `load`."""
    return read_metadata(Path(path)).get("note", "")


def load(path: Path, *, fingerprint: str, device: torch.device | str = "cpu") -> Cache:
    """The cache in a file, of the kind that it was; an offloaded one stays on the CPU.

    Raises UsageError for a cache of another model; NotFoundError, AccessError; BrokenFileError for any other file.
    """
    path = Path(path)
    about = read_metadata(path)
    if about.get("format") != FORMAT or about.get("kind") not in KINDS:
        raise BrokenFileError(f"{path} is no cache that this version can read: make it again from its text")
    if about.get("fingerprint") != fingerprint:
        raise UsageError(f"the cache in {path} is of another model: read its text again with this one")
    file = SafetensorsFile(path)
    where = "cpu" if about["kind"] == "offloaded" else device
    tensors = {name: file.load(name).clone().to(where) for name in file.entries}  # a copy: the file may change
    try:
        cache = _rebuilt(about["kind"], json.loads(about["facts"]), tensors)
        _check(cache)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError, RecursionError) as error:
        raise BrokenFileError(f"{path} contradicts itself ({error}): make it again from its text") from error
    return cache


def _tensors(cache: Cache) -> dict[str, Tensor]:
    """Everything stored, by name; of a StaticCache the filled slots."""
    pairs = cache if isinstance(cache, StaticCache) else zip(cache.keys, cache.values, strict=True)
    tensors: dict[str, Tensor] = {}
    for i, (k, v) in enumerate(pairs):
        tensors |= {f"keys.{i}": k, f"values.{i}": v}
    if cache.positions is not None:
        tensors["positions"] = cache.positions[:, : cache.length] if isinstance(cache, StaticCache) else cache.positions
    if isinstance(cache, QuantizedCache):
        for i, pair in enumerate(cache._old):
            for name, blocks in zip(("keys", "values"), pair, strict=True):
                tensors |= {f"old.{name}.{i}.{part}": getattr(blocks, part) for part in PARTS}
    return tensors


def _rebuilt(kind: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Cache:
    cls, arguments = KINDS[kind]
    settings: dict[str, Any] = {name: _number(facts[name]) for name in arguments}
    # A StaticCache is made from a config, of which the shapes say enough.
    cache = StaticCache.__new__(StaticCache) if cls is StaticCache else cls(**settings)
    if cls is StaticCache:
        Cache.__init__(cache, **settings)
    layers = range(min(_number(facts["layers"]), len(tensors)))
    cache.keys, cache.values = [tensors[f"keys.{i}"] for i in layers], [tensors[f"values.{i}"] for i in layers]
    cache.positions = tensors.get("positions")
    if isinstance(cache, SlidingWindowCache):
        cache._seen = [_number(seen) for seen in facts["seen"]]
    if isinstance(cache, QuantizedCache):
        old = [i for i in layers if f"old.keys.{i}.codes" in tensors]
        cache._old = [(_blocks(tensors, f"old.keys.{i}"), _blocks(tensors, f"old.values.{i}")) for i in old]
    if isinstance(cache, StaticCache):
        _enlarge(cache, _number(facts["capacity"]))
    return cache


def _enlarge(cache: StaticCache, capacity: int) -> None:
    filled = cache.keys[0].shape[2]
    cache._filled = torch.full((len(cache.keys),), filled, device=cache.keys[0].device)
    cache.keys = [F.pad(k, (0, 0, 0, capacity - filled)) for k in cache.keys]
    cache.values = [F.pad(v, (0, 0, 0, capacity - filled)) for v in cache.values]
    cache.positions = None if cache.positions is None else F.pad(cache.positions, (0, capacity - filled))


def _blocks(tensors: Mapping[str, Tensor], name: str) -> Blocks:
    return Blocks(*(tensors[f"{name}.{part}"] for part in PARTS))


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _check(cache: Cache) -> None:
    """Raise ValueError unless all layers hold the same rows and slots."""
    shapes = {(k.shape, v.shape, k.dtype, v.dtype) for k, v in cache}
    _, kept = cache.visible_range(0)
    kept = cache.length if isinstance(cache, StaticCache) else kept
    for k, v, *dtypes in shapes:
        if k != v or len(k) != 4 or k[2] != kept or not all(dtype.is_floating_point for dtype in dtypes):
            raise ValueError(f"keys are {tuple(k)} and values {tuple(v)} of {kept} tokens")
    if len(shapes) > 1 or (isinstance(cache, SlidingWindowCache) and len({len(cache), len(cache._seen)}) > 1):
        raise ValueError("its layers differ")
    if cache.positions is not None:
        rows, slots = cache.keys[0].shape[0], cache.capacity or kept
        if cache.positions.dtype != torch.long or tuple(cache.positions.shape) != (rows, slots):
            raise ValueError(f"its positions are {tuple(cache.positions.shape)}, {cache.positions.dtype}")
