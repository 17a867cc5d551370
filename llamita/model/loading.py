"""Load weights into a model on the meta device, by name and straight from the mapped file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llamita.checks import quoted, shortened
from llamita.errors import BrokenFileError, UnsupportedError
from llamita.model.initial import initialize

PREFIXES = ("model", "transformer")  # what checkpoints call the model below a head
Seen = Callable[[str, Tensor], None]
# Tensors without which the weights of a quantized checkpoint are no numbers: of fp8, bitsandbytes, AWQ and GPTQ.
SCALES = ("weight_scale", "weight_scale_inv", "weight_packed", "SCB", "qweight", "qzeros", "g_idx")
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # buffers that transformers before 4.31 wrote


class Tensors(Protocol):
    """Tensors by name, each read when asked for."""

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        ...

    def load(self, name: str) -> Tensor:
        """One tensor."""
        ...


@dataclass
class LoadReport:
    """What did not fit: names missing in the checkpoint, names missing in the model, and names with two shapes."""

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, set[Any] | list[str]]:
        """The report as transformers' `output_loading_info=True` gives it: sets of names, and no error messages."""
        return {**{name: set(found) for name, found in vars(self).items()}, "error_msgs": []}

    def __str__(self) -> str:
        parts = []
        if self.missing_keys:
            parts.append(f"{len(self.missing_keys)} weights are not in the checkpoint and start random: ")
            parts.append(few(self.missing_keys))
        if self.unexpected_keys:
            parts.append(f"; {len(self.unexpected_keys)} in the checkpoint have no place in the model: ")
            parts.append(few(self.unexpected_keys))
        if self.mismatched_keys:
            parts.append("; of another shape in the checkpoint (checkpoint, model): ")
            parts.append(few(f"{name} {theirs} {ours}" for name, theirs, ours in self.mismatched_keys))
        return "".join(parts).removeprefix("; ")


def few(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    return ", ".join(shortened(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class MemoryTensors:
    """A state dict in memory, read like a checkpoint."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        return self._tensors[name].dtype

    def load(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name]


def whole(weight: Tensor, like: Tensor, *, dtype: torch.dtype, device: torch.device, copies: bool = False) -> Tensor:
    """A weight of a file for the parameter `like` of a model that is on one device: in a dtype, on that device.

    copies: of parts, which this is none of.
    """
    return weight.to(device=device, dtype=dtype)


def fill(
    model: nn.Module,
    tensors: Tensors,
    *,
    tied: Mapping[str, str],
    std: float,
    dtype: torch.dtype,
    device: torch.device,
    fit: Callable[..., Tensor] = whole,
    seen: Seen | None = None,
) -> LoadReport:
    """Give every parameter of a model on the meta device its tensor, or a first value.

    tied: name of a tied weight -> name of the weight it shares; the model itself ties them. fit: makes a parameter of
    a weight, as `whole` does. seen: is given every name with its whole weight, before it fits.
    Raises BrokenFileError for ties that the file contradicts.
    """
    sources = _sources(tensors.names, [*model.state_dict(), *tied])  # of a stage of a model only one twin may be here
    _check_ties(model, tensors, sources, tied, fit)
    report = LoadReport(unexpected_keys=_unexpected(tensors.names, sources, tied))
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in tied:
            continue
        source = _source(name, sources, tied)
        if source is not None and tensors.shape(source) == tuple(parameter.shape):
            weight = tensors.load(source)
            _check_plain(source, weight)
            if seen is not None:
                seen(name, weight)
            put(model, name, fit(weight, parameter, dtype=dtype, device=device))
            continue
        if source is None:
            report.missing_keys.append(name)
        else:
            report.mismatched_keys.append((name, tensors.shape(source), tuple(parameter.shape)))
        owner, _, leaf = name.rpartition(".")
        fresh = torch.empty(parameter.shape, dtype=dtype, device=device)
        initialize(model.get_submodule(owner), leaf, fresh, std=std)
        if seen is not None:
            seen(name, fresh)
        put(model, name, fit(fresh, parameter, dtype=dtype, device=device))
    return report


def _check_plain(name: str, weight: Tensor) -> None:
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"the weight {shortened(name)} holds {kind}, so it is quantized: give one of plain weights"
        )


def check_complete(model: nn.Module, tensors: Tensors, *, tied: Mapping[str, str], where: object) -> None:
    """Check by the header that a checkpoint has every weight of a model, so that none is initialized at random.

    Raises BrokenFileError, which names `where` and the first weights that are missing or of another shape.
    """
    wanted = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    if scale := next((name for name in tensors.names if name.rpartition(".")[2] in SCALES), None):
        raise UnsupportedError(
            f"{where} has {shortened(scale)}, so it is quantized: give a checkpoint of plain weights"
        )
    sources = _sources(tensors.names, list(wanted))
    found = {name: _source(name, sources, tied) for name in wanted if name not in tied}
    missing = [name for name, source in found.items() if source is None]
    if len(missing) == len(found) and (prefix := _wrapper(tensors.names, missing[0])):
        raise BrokenFileError(
            f"{where} has names that begin with {quoted(prefix)}, of a model in a wrapper such as DDP or "
            "torch.compile: save the model inside it"
        )
    if missing:
        raise BrokenFileError(
            f"{where} is incomplete: {len(missing)} of {len(found)} weights are not in it: {few(missing)}; "
            "download it again"
        )
    for name, source in found.items():
        if source is not None and tensors.shape(source) != wanted[name]:
            raise BrokenFileError(
                f"{where} does not fit its config.json: {shortened(name)} is {wanted[name]} there, "
                f"and {tensors.shape(source)} in the weights"
            )


def _wrapper(names: Iterable[str], wanted: str) -> str:
    """What stands before the name of a weight that is wanted; nothing where no name ends with it."""
    return next((name.removesuffix(wanted) for name in names if name.endswith(f".{wanted}")), "")


def _source(name: str, sources: Mapping[str, str], tied: Mapping[str, str]) -> str | None:
    """The checkpoint's name for one of our weights, or for the weight tied to it; None where it has neither."""
    return sources.get(name) or sources.get(_twin(name, tied))


def _sources(names: list[str], wanted: list[str]) -> dict[str, str]:
    """Model name -> checkpoint name, with the base model's prefix added, removed or changed where needed."""
    available = set(names)
    candidates = {name: (name, *_spellings(name)) for name in wanted}
    found = {name: next((c for c in options if c in available), None) for name, options in candidates.items()}
    return {name: source for name, source in found.items() if source is not None}


def _spellings(name: str) -> list[str]:
    """The names under which checkpoints of a base model, or of any head on it, keep a weight."""
    prefix, _, rest = name.partition(".")
    stem = rest if prefix in PREFIXES else name
    return [stem, *(f"{prefix}.{stem}" for prefix in PREFIXES)]


def _twin(name: str, tied: Mapping[str, str]) -> str:
    return next((twin for twin, source in tied.items() if source == name), "")


def _check_ties(
    model: nn.Module, tensors: Tensors, sources: Mapping[str, str], tied: Mapping[str, str], fit: Callable[..., Tensor]
) -> None:
    """Compare what the file has of each pair, of a sharded model this process's part."""
    for twin, source in tied.items():
        if twin not in sources or source not in sources:
            continue
        like, device = model.get_parameter(source), torch.device("cpu")
        whole = [tensors.load(sources[name]) for name in (twin, source)]
        parts = [fit(weight, like, dtype=weight.dtype, device=device) for weight in whole]
        if not torch.equal(*(getattr(part, "to_local", lambda part=part: part)() for part in parts)):
            raise BrokenFileError(
                f"the config ties {twin} to {source}, but the checkpoint holds different values for them: "
                "set tie_word_embeddings to false in config.json, or mend the checkpoint"
            )


def _unexpected(names: list[str], sources: Mapping[str, str], tied: Mapping[str, str]) -> list[str]:
    used = set(sources.values()) | {spelling for name in tied for spelling in _spellings(name)}
    return [name for name in names if name not in used and not name.endswith(IGNORED_SUFFIXES)]


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter of this name, frozen where the one before it is."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    before = module._parameters.get(leaf)
    module.register_parameter(leaf, nn.Parameter(tensor, before is None or before.requires_grad))
