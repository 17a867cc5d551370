"""Functions that torch's pass looks up by name while it runs, and modes of torch that see each of its operations.

A program of kernels stands in for all of them: one that is replaced (`torch.nn.functional.linear = mine`), or a mode
(one that counts operations), sends the pass back to torch.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import getitem, itemgetter
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch._C._functorch import maybe_current_level
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._device import DeviceContext

PACKAGE = __name__.partition(".")[0]
OWN = {PACKAGE, "torch", *sys.stdlib_module_names} - {"__main__"}
Binding = tuple[Any, Any]  # a module, a class or a table, and a name in it


class Called:
    """The bindings by which functions find others, from the roots on, and their values.

    roots: modules and classes, with the names of the functions in them. Raises KeyError for a name that is not there.
    """

    def __init__(self, roots: Mapping[Any, Iterable[str]]) -> None:
        bindings = list(_bindings([(owner, name) for owner, names in roots.items() for name in names]))
        self._spaces, self._names = [_space(owner) for owner, _ in bindings], [name for _, name in bindings]
        self._values = [*map(getitem, self._spaces, self._names)]
        self._foreign = [name for name, value in zip(self._names, self._values, strict=True) if not _is_own(value)]
        found = dict[int, tuple[Any, list[Any]]]()  # the names that are looked up in each space
        for (owner, name), space in zip(bindings, self._spaces, strict=True):
            found.setdefault(id(owner), (space, []))[1].append(name)
        self._looks: list[tuple[Callable[[Any], Any], Any]] = [
            (itemgetter(*names), space) for space, names in found.values()
        ]
        self._seen = [look(space) for look, space in self._looks]

    def has_changed(self) -> bool:
        """Whether one of the bindings has another value."""
        try:
            return [look(space) for look, space in self._looks] != self._seen
        except KeyError:
            return True

    def replaced(self) -> str | None:
        """The name of a function that is not torch's or ours, or is not the one that was there first; or None."""
        found = zip(self._spaces, self._names, self._values, strict=True)
        other = [name for space, name, value in found if space.get(name) is not value]
        return next((str(name) for name in (*other, *self._foreign)), None)


def is_in_mode() -> bool:
    """Whether a mode sees or changes every operation of torch; that of a default device only places new tensors."""
    return bool(torch._C._len_torch_dispatch_stack()) or is_in_function_mode()


def is_in_function_mode() -> bool:
    """The same of modes that see functions, rather than what these dispatch to."""
    return torch._C._len_torch_function_stack() > 0 and any(type(one) is not DeviceContext for one in function_modes())


def is_ours(value: Any) -> bool:
    """Whether it is a function of this package, as the hook is by which a quantized model refuses to be trained."""
    return isinstance(value, FunctionType) and _home(value).startswith(f"{PACKAGE}.")


def is_transformed() -> bool:
    """Whether a transform of `torch.func` (vmap, jvp) runs: its tensors stand for others, and have no memory."""
    return maybe_current_level() is not None


def _bindings(todo: list[Binding]) -> Iterator[Binding]:
    """These bindings, and those that their values look up."""
    seen = set[tuple[int, Any]]()
    while todo:
        owner, name = todo.pop()
        if (id(owner), name) not in seen:
            seen.add((id(owner), name))
            yield owner, name
            todo += _looked_up(_space(owner)[name])


def _space(owner: Any) -> Mapping[Any, Any]:
    return owner if isinstance(owner, dict) else vars(owner)


def _looked_up(value: Any) -> Iterator[Binding]:
    """The bindings that our code looks up in a pass: a function, a class, or a table or a row of functions.

    Not what modules are made of: that may differ from module to module.
    """
    value = value.fget if isinstance(value, property) else value
    if isinstance(value, dict):
        yield from ((value, key) for key, one in value.items() if isinstance(one, FunctionType | tuple))
    elif isinstance(value, tuple):
        for one in value:
            yield from _looked_up(one)
    elif isinstance(value, type):
        is_made_in_passes = value.__module__.startswith(f"{PACKAGE}.") and not issubclass(value, nn.Module | Exception)
        functions = [name for name, one in vars(value).items() if isinstance(one, FunctionType | property)]
        yield from ((value, name) for name in functions if is_made_in_passes)
    elif isinstance(value, FunctionType) and _home(value).startswith((f"{PACKAGE}.", "torch.nn.modules.")):
        yield from _of_code(value.__code__, value.__globals__)


def _of_code(code: CodeType, space: dict[str, Any]) -> Iterator[Binding]:
    """The functions, classes and tables that a function's code names, by themselves or in a module."""
    names = {*code.co_names}
    for name in sorted(names & space.keys()):
        if isinstance(space[name], ModuleType):
            inside = vars(space[name])
            yield from ((space[name], one) for one in sorted(names & inside.keys()) if callable(inside[one]))
        elif callable(space[name]) or isinstance(space[name], dict):
            yield space, name
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant, space)


def _home(function: FunctionType) -> str:
    """The module in which a function was written, whatever it says of itself."""
    return str(function.__globals__["__name__"])


def _is_own(value: Any) -> bool:
    """Whether a function, if it is one in Python, is of torch, of Python or ours."""
    return not isinstance(value, FunctionType) or _home(value).partition(".")[0] in OWN
