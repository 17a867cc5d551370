"""The weights of a model's modules, as the kernels read them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llamita.kernels.cpu.packed_layout import Packed
from llamita.model.parts import LayerParts
from llamita.model.stored import StoredWeight

CPU = torch.device("cpu")


def packed_of(module: nn.Module) -> Packed | None:
    """The packed matrix that a quantized layer has on the CPU, or None for a plain one."""
    view = module.kernel_view() if isinstance(module, StoredWeight) else None
    return view if isinstance(view, Packed) else None


def matrix_of(module: nn.Module) -> Tensor | None:
    """The memory of a layer's matrix, all of which every step reads."""
    packed = packed_of(module)
    if packed is not None:
        return packed.stream
    return module.weight.detach() if isinstance(module, nn.Linear) else None


def _plain(module: nn.Module) -> Tensor:
    """A plain layer's weight, which `torch.func.functional_call` may have replaced by a tensor that is no parameter."""
    weight = module._parameters["weight"]
    assert weight is not None, "the kernels know no layer without a weight"
    return weight.detach()


class LayerWeights(NamedTuple):
    """The tensors that a layer's calls read, and all else that these depend on: of equal kind, they are the same.

    addresses: those of the tensors, which are no biases.
    """

    tensors: list[Tensor]
    addresses: list[int]
    biases: list[Tensor]
    kind: tuple[object, ...]

    @classmethod
    def of(cls, layer: LayerParts) -> "LayerWeights":
        """Those of a layer."""
        tensors, kind, biases = list[Tensor](), list[object](), list[Tensor]()
        for norm in (layer.input_norm, layer.post_norm):
            tensors.append(norm.weight.detach())
            kind.append((norm.variance_epsilon, norm.weight.dtype, norm.weight.shape))
        for module in layer.products:
            packed, bias = packed_of(module), module._parameters.get("bias")
            weight = packed.stream if packed else _plain(module)
            tensors.append(weight)
            kind.append((packed.format_name if packed else weight.dtype, weight.shape, bias is not None and bias.dtype))
            biases += [] if bias is None else [bias]
        return cls(tensors, [one.data_ptr() for one in tensors], biases, tuple(kind))

    def can_replace(self, other: "LayerWeights") -> bool:
        """Whether its calls are those of the other with its own tensors: not where one of those stands for two."""
        if self.kind != other.kind:
            return False
        pairs = list(zip(other.addresses, self.addresses, strict=True))
        pairs += [(id(one), id(own)) for one, own in zip(other.biases, self.biases, strict=True)]
        found = dict(pairs)
        return all(found[one] == own for one, own in pairs)
