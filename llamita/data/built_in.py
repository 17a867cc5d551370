"""Training data that is there without a file, by name."""

from collections.abc import Callable, Mapping, Sequence

from llamita.data import practice
from llamita.data.docstrings import read_docstrings
from llamita.data.records import Record, read_records
from llamita.errors import UsageError

PREFIX = "built-in:"
DOCSTRINGS = f"{PREFIX}docstrings"
BUILT_IN: Mapping[str, Callable[[], list[Record]]] = {
    DOCSTRINGS: read_docstrings,
    f"{PREFIX}swap": practice.completions,
    f"{PREFIX}swap-pairs": practice.pairs,
    f"{PREFIX}speech": practice.beginnings,
}


def read_data(names: Sequence[str], *, offline: bool = False) -> list[Record]:
    """The records of files and of built-in data, in order; of nothing, the docstrings of this Python.

    Raises UsageError for a built-in name that is none, and what `read_records` raises.
    """
    if unknown := next((name for name in names if name.startswith(PREFIX) and name not in BUILT_IN), None):
        raise UsageError(f"there is no data {unknown}: use one of {', '.join(BUILT_IN)}, or a file")
    return [record for name in names or (DOCSTRINGS,) for record in _read(name, offline=offline)]


def _read(name: str, *, offline: bool) -> list[Record]:
    return BUILT_IN[name]() if name in BUILT_IN else read_records([name], offline=offline)
