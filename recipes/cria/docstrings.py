"""The docstrings of the standard library of Python (PSF licence), in an order that the Python version alone decides."""

import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

from llamita.data.docstrings import docstrings_of

_LENGTHS = range(80, 4000)  # characters: shorter ones say little, longer ones are manuals


@cache
def read_docstrings(*, held_out: bool) -> list[str]:
    """All docstrings of the modules on one side of the split; a twentieth of the modules is held out, by name."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = {name: path for name, path in _modules(root) if _is_held_out(name) == held_out}
    found = (text for _, path in sorted(modules.items()) for text in docstrings_of(path))
    return list(dict.fromkeys(text for text in found if len(text) in _LENGTHS))


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for top in sorted(sys.stdlib_module_names):
        paths = [root / f"{top}.py", *sorted((root / top).rglob("*.py"))]
        for path in paths:
            relative = path.relative_to(root)
            if path.is_file() and not {"test", "tests", "idle_test", "site-packages"} & set(relative.parts):
                yield ".".join(relative.with_suffix("").parts), path


def _is_held_out(module: str) -> bool:
    return blake2b(module.encode(), digest_size=4).digest()[0] < 13
