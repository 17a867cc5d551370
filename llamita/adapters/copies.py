"""Copies of a model in the same memory, for adapters that are merged into one of them each."""

from copy import deepcopy
from typing import TypeVar

from torch import nn

from llamita.model.stored import StoredWeight

Model = TypeVar("Model", bound=nn.Module)


def shared_copy(model: Model) -> Model:
    """A copy whose modules and parameters are new, and whose numbers are the same memory."""
    # deepcopy takes what it finds in the memo for copied. Tied parameters stay tied, as they are one entry.
    memo: dict[int, object] = {id(one): nn.Parameter(one.data, one.requires_grad) for one in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    matrices = [module.matrix for module in model.modules() if isinstance(module, StoredWeight)]
    return deepcopy(model, memo | {id(matrix): matrix for matrix in matrices})
