"""Detect, in every pass and within microseconds, that a model has changed since its plan was made."""

from collections.abc import Iterator
from operator import attrgetter, getitem
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from llamita.kernels.cpu.packed_layout import Packed
from llamita.model.stored import StoredWeight
from llamita.plans.cpu.called import is_in_mode
from llamita.plans.cpu.parts import CALLED, functions_of

# Of each module that has them: what a pass depends on, other than modules, parameters and buffers.
FACTS = ("config", "variance_epsilon", "attention_factor", "layer_idx", "head_dim", "act_fn", "max_norm", "matrix")
shape_of, dtype_of = attrgetter("shape"), attrgetter("dtype")


class Watch:
    """Stores a model's modules, their classes, functions, tensors and attributes, and what the tensors are.

    Not the values of the tensors: kernels read these again in every pass. Every comparison is one loop in C.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._types = [type(module) for module in self._modules]
        functions = [(kind, one) for kind in dict.fromkeys(self._types) for one in ("__call__", *functions_of(kind))]
        self._classes, self._called = [kind for kind, _ in functions], [one for _, one in functions]
        self._functions = [*map(getattr, self._classes, self._called)]
        self._inner, inner = model.get_submodule("model"), self._modules[1:]  # the model's own forward is the plan
        patchable = [(vars(module), one) for module in inner for one in functions_of(type(module))]
        self._instances, self._patches = [instance for instance, _ in patchable], [one for _, one in patchable]
        self._holders = list(_holders(self._modules))
        self._held = [dict(holder) for holder in self._holders]
        facts = [(vars(module), name) for module in self._modules for name in FACTS if name in vars(module)]
        self._owners, self._names = [owner for owner, _ in facts], [name for _, name in facts]
        self._facts = [owner[name] for owner, name in facts]
        self._tensors = [x for held in self._held for x in held.values() if isinstance(x, Tensor) and x.numel()]
        self._addresses, self._kinds = [*map(Tensor.data_ptr, self._tensors)], [*map(type, self._tensors)]
        self._shapes, self._dtypes = [*map(shape_of, self._tensors)], [*map(dtype_of, self._tensors)]
        self._hooks = [hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._hooks += [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]

    def is_observed(self) -> bool:
        """Whether hooks of a module, or a mode of torch, read or change what goes through the model, or it trains."""
        return any(self._hooks) or self._inner.training or is_in_mode()

    def has_changed(self) -> bool:
        """Whether a module, a function, a tensor or an attribute is another one, or a tensor lies in other memory.

        Memory that is read as another shape or dtype is another, too.
        """
        try:
            return (
                [*map(type, self._modules)] != self._types
                or self._holders != self._held  # the same tensor is equal by identity; another one raises
                or any(map(dict.__contains__, self._instances, self._patches))
                or [*map(getattr, self._classes, self._called)] != self._functions
                or [*map(getitem, self._owners, self._names)] != self._facts
                or [*map(Tensor.data_ptr, self._tensors)] != self._addresses
                or [*map(shape_of, self._tensors)] != self._shapes
                or [*map(dtype_of, self._tensors)] != self._dtypes
                or [*map(type, self._tensors)] != self._kinds
                or not all(map(Tensor.is_contiguous, self._tensors))
                or CALLED.has_changed()
            )
        except (RuntimeError, KeyError, AttributeError, TypeError):  # what was there is gone, or cannot be compared
            return True


def _holders(modules: list[nn.Module]) -> Iterator[dict[str, Any]]:
    """The dictionaries that hold the modules' children and tensors."""
    for module in modules:
        yield from (held for held in (module._modules, module._parameters, module._buffers) if held)
        if isinstance(module, StoredWeight) and isinstance(packed := module.kernel_view(), Packed):
            yield from (vars(module.matrix), vars(packed))
