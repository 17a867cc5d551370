"""Adapters in peft's files: adapter_config.json and adapter_model.safetensors."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from llamita.adapters.config import ALL_LINEAR, SELECTING, LoraConfig
from llamita.adapters.dora import DoraPair
from llamita.adapters.embedding import EmbeddingPair
from llamita.adapters.layer import LoraLayer, base_of, pair_kind
from llamita.adapters.lora import adapters, add_lora, layers_to_adapt, lora_layers, targets
from llamita.adapters.pair import LoraPair, sides
from llamita.checks import quoted, shortened
from llamita.errors import BrokenFileError, NotFoundError, UnsupportedError, UsageError
from llamita.files.disk import explained, named_path, read_json, replacing, write_json
from llamita.files.safetensors import SafetensorsFile, write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_BASE = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+?)(\.base_layer)?\.weight")
PARTS = (*DoraPair.names.values(), *EmbeddingPair.names.values())
_NAME = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.(?P<part>{'|'.join(map(re.escape, PARTS))})")


def save_adapter(
    model: nn.Module, folder: str | Path, name: str = "default", *, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter as peft's PeftModel.from_pretrained, vLLM and llama.cpp's converter read it.

    weights: whole, by the names of the model's parameters, for a model that has parts of them.
    Raises UsageError for an unknown name, AccessError, or LlamitaError where the disk is full.
    """
    known = adapters(model)
    if name not in known:
        raise UsageError(f"no adapter is named {name!r}: the model has {', '.join(known) or 'none'}")
    folder = Path(folder)
    layers = {target: layer for target, layer in lora_layers(model).items() if name in layer.pairs}
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as file:
        # Copies: what numpy has looked at keeps its memory, and FSDP2 could not shard it again.
        write_tensors(file, _tensors(layers, name, weights or {}), {"format": "pt"}, fetch=Tensor.clone)
    values = {"base_model_name_or_path": getattr(model, "name_or_path", None) or None, **known[name].to_dict()}
    if hasattr(model, "lm_head"):
        values["task_type"] = "CAUSAL_LM"
    write_json(folder / CONFIG, values | {"target_modules": _names_for_peft(known[name], list(layers))})


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default", *, trainable: bool = False) -> list[str]:
    """Give the model the adapter of a folder, ours or peft's; returns the names of the layers that it adapts.

    The first adapter of a model is active, `set_adapter` chooses among several. trainable: its matrices get gradients.
    Raises NotFoundError, BrokenFileError (damaged, or not complete), UnsupportedError (another kind of adapter, or a
    key that changes what it computes), UsageError (it is for another model); the model then stays as it is.
    """
    folder = named_path(folder)
    config = read_config(folder)
    pairs = _read_pairs(model, folder / WEIGHTS)
    config = _check_targets(model, config, list(pairs), folder)
    for target, parts in pairs.items():
        _check_shapes(model, target, config, parts, folder)
    with torch.random.fork_rng(devices=[]):  # the first values are drawn, and not used
        names = add_lora(model, config, name)
    for target, parts in pairs.items():
        pair = cast("LoraPair", cast("LoraLayer", model.get_submodule(target)).pairs[name])
        pair.requires_grad_(trainable)
        with torch.no_grad():
            for part, parameter in pair.named_parameters():
                parameter.copy_(parts[pair.names[part]])
    return names


def adapter_digest(folder: str | Path) -> str:
    """The sha256 of an adapter's two files, one after the other: `cat adapter_config.json adapter_model.safetensors`.

    Raises the disk's errors.
    """
    sha = hashlib.sha256()
    for path in (named_path(folder) / name for name in (CONFIG, WEIGHTS)):
        with explained("read", path):
            sha.update(path.read_bytes())
    return sha.hexdigest()


def _tensors(layers: Mapping[str, LoraLayer], name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pairs = {target: cast("LoraPair", layer.pairs[name]) for target, layer in layers.items()}
    return {
        f"{PREFIX}{target}.{pair.names[part]}": weights.get(f"{target}.pairs.{name}.{part}", parameter.detach())
        for target, pair in pairs.items()
        for part, parameter in pair.named_parameters()
    }


def _names_for_peft(config: LoraConfig, layers: list[str]) -> str | list[str]:
    """Names that peft understands: it reads a single string as a regular expression, and knows no globs."""
    names = config.target_modules
    if names == ALL_LINEAR:
        return ALL_LINEAR
    names = [names] if isinstance(names, str) else list(names)
    return layers if any(set("*?[") & set(one) for one in names) else names


def read_config(folder: Path) -> LoraConfig:
    """The config of an adapter's folder. Raises NotFoundError, BrokenFileError, UnsupportedError, UsageError."""
    path = folder / CONFIG
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {CONFIG}: give the folder of an adapter that peft or llamita saved")
    values = read_json(path)
    try:
        return LoraConfig.from_dict(values)
    except (UsageError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read_pairs(model: nn.Module, path: Path) -> dict[str, dict[str, Tensor]]:
    """The finite tensors of each layer, by the ends of their names.

    peft adds the base weight of the head where that has an adapter: it must be the model's own.
    """
    file = SafetensorsFile(path)
    found: dict[str, dict[str, Tensor]] = {}
    for name in file.entries:
        if parts := _NAME.fullmatch(name):
            found.setdefault(parts["module"], {})[parts["part"]] = _checked(file.load(name), name, path)
        elif not _is_base(model, name, file):
            raise UnsupportedError(
                f"{path} holds {quoted(name)}, which is neither A or B of a layer nor a weight of the model: "
                "use peft for this adapter"
            )
    if not found:
        raise BrokenFileError(f"{path} holds no A and B: save the adapter again")
    return found


def _is_base(model: nn.Module, name: str, file: SafetensorsFile) -> bool:
    parts = _BASE.fullmatch(name)
    module = dict(model.named_modules()).get(parts["module"]) if parts else None
    weight = None if module is None else base_of(module)._parameters.get("weight")
    return weight is not None and torch.equal(weight.cpu(), file.load(name).to(weight.dtype))


def _checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise BrokenFileError(f"{path}: {quoted(name)} is {tensor.dtype}, and should be of floats: save it again")
    if not tensor.float().isfinite().all():
        raise BrokenFileError(f"{path}: {quoted(name)} has numbers that are not finite: train the adapter again")
    return tensor


def _check_targets(model: nn.Module, config: LoraConfig, found: list[str], folder: Path) -> LoraConfig:
    """The config with the names of the layers in the file, once they are the very layers that the config names."""
    modules = {name for name, _ in model.named_modules()}
    if absent := next((name for name in found if name not in modules), None):
        raise UsageError(f"the adapter in {folder} is for another model: this one has no {shortened(absent)}")
    exact = dataclasses.replace(config, target_modules=sorted(found))
    names = targets(model, exact)  # raises for layers that are not linear
    if not any(config.extra.get(key) for key in SELECTING):
        wanted = set(_named(model, config))
        if lacking := sorted(wanted - set(found)):
            raise BrokenFileError(
                f"{folder / WEIGHTS} lacks {lacking[0]}, which {CONFIG} names: save the adapter again"
            )
        if more := sorted(set(found) - wanted):
            raise BrokenFileError(f"{folder / WEIGHTS} holds {more[0]}, which {CONFIG} does not name: save it again")
        if not isinstance(config.target_modules, str) or config.target_modules == ALL_LINEAR:
            return config
    extra = {key: None if key in SELECTING else value for key, value in config.extra.items()}
    return dataclasses.replace(config, target_modules=names, extra=extra)


def _named(model: nn.Module, config: LoraConfig) -> list[str]:
    """The layers that target_modules names to peft: a list has ends of names, a string is a regular expression."""
    names = config.target_modules
    if names == ALL_LINEAR:
        return targets(model, config)
    if isinstance(names, str):
        try:
            return [layer for layer in layers_to_adapt(model) if re.fullmatch(names, layer)]
        except (re.error, RecursionError) as error:
            raise UsageError(
                f"target_modules is {quoted(names)}, no regular expression ({error}): correct it"
            ) from None
    ends = tuple(f".{name}" for name in names)
    return [layer for layer in layers_to_adapt(model) if f".{layer}".endswith(ends)]


def _check_shapes(model: nn.Module, target: str, config: LoraConfig, parts: Mapping[str, Tensor], folder: Path) -> None:
    base, rank = base_of(model.get_submodule(target)), config.rank(target)
    columns, rows = sides(base)
    shapes = {"A": (rank, columns), "B": (rows, rank), "magnitude": (rows,)}
    wanted = {name: shapes[part] for part, name in pair_kind(base, config).names.items()}
    if odd := sorted(wanted.keys() ^ parts.keys()):
        what = "lacks" if odd[0] in wanted else "holds, and its config does not name,"
        raise BrokenFileError(f"{folder / WEIGHTS} {what} {odd[0]} of {target}: save the adapter again")
    for name, shape in wanted.items():
        if tuple(parts[name].shape) != shape:
            raise UsageError(
                f"the adapter in {folder} is for another model: {name} of {target} is of the shape "
                f"{tuple(parts[name].shape)}, and this one needs {shape}"
            )
