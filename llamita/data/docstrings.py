"""The docstrings of this machine's Python, a text that is there without a network (PSF licence)."""

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from llamita.data.records import Record
from llamita.errors import NotFoundError

CHARACTERS = 1_500_000  # enough for minutes of training on a CPU
LENGTHS = range(80, 4000)  # shorter ones say little, longer ones are manuals
LEFT_OUT = {"test", "tests", "idle_test", "site-packages"}


def read_docstrings(characters: int = CHARACTERS) -> list[Record]:
    """Docstrings of the standard library, up to that many characters; the Python version alone decides their order.

    Raises NotFoundError where the library's sources are not installed.
    """
    found: dict[str, Record] = {}
    total = 0
    for path in _sources(Path(sysconfig.get_path("stdlib"))):
        for text in docstrings_of(path):
            if text not in found and len(text) in LENGTHS:
                found[text] = Record({"text": text}, str(path))
                total += len(text)
        if total >= characters:
            break
    if not found:
        raise NotFoundError("this Python has no sources of its library to learn from: give a text file to train on")
    return list(found.values())


def _sources(root: Path) -> Iterator[Path]:
    for top in sorted(sys.stdlib_module_names):
        for path in (root / f"{top}.py", *sorted((root / top).rglob("*.py"))):
            if path.is_file() and not LEFT_OUT & set(path.relative_to(root).parts):
                yield path


def docstrings_of(path: Path) -> Iterator[str]:
    """The docstrings of a source file that are ASCII."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources hold invalid escapes
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.isascii():
                yield text.strip()
