"""Replace modules of a finished model, as quantization and adapters do."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from llamita.errors import UsageError


def replace(model: nn.Module, where: str | Iterable[str], build: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Put `build(module)` in the place of every module that `where` names; returns the full names, in order.

    where: globs on full names, or on their ends after a dot: "mlp.*_proj", "layers.0.self_attn.?_proj", "lm_head".
    A module inside a replaced one is not replaced by itself; one with two names is built once.
    Raises UsageError for a glob that matches nothing.
    """
    globs = [where] if isinstance(where, str) else list(where)
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    for glob in globs:
        if not any(_matches(name, glob) for name in modules):
            raise UsageError(f"no module is named {glob!r}: {_nearest(glob, list(modules))}")
    built: dict[nn.Module, nn.Module] = {}
    replaced: list[str] = []
    for name, module in modules.items():
        is_inside = any(name.startswith(f"{outer}.") for outer in replaced)
        if is_inside or not any(_matches(name, glob) for glob in globs):
            continue
        if module not in built:
            built[module] = build(module)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, built[module])
        replaced.append(name)
    return replaced


def _matches(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"*.{glob}")


def _nearest(glob: str, names: list[str]) -> str:
    ends = [name.split(".", depth)[-1] for depth in range(5) for name in names]
    near = get_close_matches(glob, dict.fromkeys(ends), n=3, cutoff=0.0)
    return f"did you mean {', '.join(near)}?"
