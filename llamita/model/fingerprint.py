"""Names for what a model computes: a fingerprint that is cheap to take, and a digest of every number of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from llamita.model.pretrained import PreTrainedModel
from llamita.model.stored import StoredWeight, WithSettings

SAMPLE = 64  # numbers taken of each weight, evenly


def fingerprint(model: PreTrainedModel) -> str:
    """64 hex digits from the config and a sample of every weight: other weights, adapters or dtypes give others.

    A change to a few numbers of a weight may go unseen: it tells models apart, it does not certify them.
    """
    digest = _of_settings(model)
    for name, weight in weights_of(model):
        _add_sample(digest, name, weight.shape, _sample(weight))
    return digest.hexdigest()


class UnreadFingerprint:
    """The `fingerprint` of a model on the meta device, from its weights as they are read.

    `seen` is given each of them; in between adapters may be added, and the model sharded.
    samples: of the weights that were seen, by name; of several processes each may see some.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._digest, self._tied = _of_settings(model), dict(model.tied_weights)
        self._shapes = {name: weight.shape for name, weight in weights_of(model)}
        self._dtype = getattr(torch, str(model.config.dtype))
        self.samples: dict[str, Tensor] = {}

    def seen(self, name: str, weight: Tensor) -> None:
        """Take the sample of a whole weight."""
        self.samples[name] = _sample(weight).to(self._dtype, copy=True)  # the file may be closed before `value`

    def value(self, samples: Mapping[str, Tensor]) -> str:
        """The fingerprint, from the samples of all weights."""
        digest = self._digest.copy()
        for name, shape in self._shapes.items():
            _add_sample(digest, name, shape, samples[self._tied.get(name, name)])
        return digest.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]


def _add_sample(digest: "hashlib._Hash", name: str, shape: torch.Size, sample: Tensor) -> None:
    digest.update(f"{name} {tuple(shape)} {sample.dtype}".encode())
    digest.update(_bytes(sample))


@torch.no_grad()
@torch.inference_mode(False)  # in which sharded weights cannot be gathered
def weights_digest(model: PreTrainedModel) -> str:
    """64 hex digits, the sha256 of the config and of every number of every weight."""
    digest = _of_settings(model)
    for name, weight in weights_of(model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        for part in weight.reshape(-1).split(1 << 24):
            digest.update(_bytes(part))
    return digest.hexdigest()


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model by name, in one order; a quantized one as the parts that it stores.

    Sharded ones are gathered, one after another: every process must ask.
    """
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        temporary = module._non_persistent_buffers_set
        own = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in temporary}}
        found |= {prefix + leaf: tensor.detach() for leaf, tensor in own.items() if tensor is not None}
        if isinstance(module, StoredWeight):
            parts = module.matrix.stored_tensors()
            found |= {f"{prefix}weight.{number}": part for number, part in enumerate(parts)}
    for name, tensor in sorted(found.items()):
        gathered = getattr(tensor, "full_tensor", None)  # of a DTensor, whose parts several processes have
        yield name, tensor if gathered is None else gathered()


def _of_settings(model: PreTrainedModel) -> "hashlib._Hash":
    facts = {name: value for name, value in model.config.to_dict().items() if name not in model.config.extra}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, module in model.named_modules():
        if isinstance(module, WithSettings):
            digest.update(f"{name} {module.settings()}".encode())
    return digest


def _bytes(numbers: Tensor) -> bytes:
    return numbers.cpu().contiguous().view(torch.uint8).numpy().tobytes()
