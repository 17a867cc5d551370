"""The weights of a model's modules, as the kernels read them."""

from collections.abc import Mapping
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


class LayerWeights(NamedTuple):
    """The tensors that a layer's calls read, and all else that these depend on: of equal kind, they are the same."""

    tensors: list[Tensor]
    biases: list[Tensor]
    kind: tuple[object, ...]

    @classmethod
    def of(cls, layer: LayerParts) -> "LayerWeights":
        """Those of a layer, but for biases, of which each pass has copies of its own."""
        tensors, kind, biases = list[Tensor](), list[object](), list[Tensor]()
        for norm in (layer.input_norm, layer.post_norm):
            tensors.append(norm.weight.detach())
            kind.append((norm.variance_epsilon, norm.weight.dtype, norm.weight.shape))
        for module in layer.products:
            packed, bias = packed_of(module), module._parameters.get("bias")
            weight = packed.stream if packed else module.get_parameter("weight").detach()
            tensors.append(weight)
            kind.append((packed.format_name if packed else weight.dtype, weight.shape, bias is not None and bias.dtype))
            biases += [] if bias is None else [bias]
        return cls(tensors, biases, tuple(kind))

    def with_biases(self, copies: Mapping[int, Tensor]) -> "LayerWeights":
        """The same with these copies of the biases, by their ids."""
        return self._replace(biases=[copies[id(bias)] for bias in self.biases])

    def instead_of(self, other: "LayerWeights") -> dict[int, Tensor] | None:
        """The tensors by the addresses of another layer's of this kind; None where one of those stands for two."""
        pairs = list(zip([*other.tensors, *other.biases], [*self.tensors, *self.biases], strict=True))
        found = {one.data_ptr(): own for one, own in pairs}
        return found if all(found[one.data_ptr()] is own for one, own in pairs) else None
