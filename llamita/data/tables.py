"""Rows of parquet files and of Hugging Face datasets, whose libraries are optional."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UnsupportedError, UsageError
from llamita.files.disk import explained, named_path

NAME = re.compile(r"([^:]+)(?::(\w+(?:\[[^\]]*\])?))?(?::([1-9]\d*|\*))?")  # train[:2%] is a split
ENDLESS = ":*"  # the end of the name of a dataset that is streamed, and begins again at its end
Row = tuple[Any, str]  # the values by column, and where they stand


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a parquet file, a group of rows in memory at a time.

    Raises UnsupportedError without pyarrow, NotFoundError, AccessError, BrokenFileError.
    """
    parquet = _library("pyarrow.parquet")
    with explained("read", path), path.open("rb"):
        pass
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield _without_nulls(row), f"{path}, row {number}"
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise BrokenFileError(f"{path} is no whole parquet file ({_first_line(error)}): write it again") from error


def read_dataset(name: str, *, offline: bool = False) -> Iterator[Row]:
    """The rows of a dataset of Hugging Face: NAME, NAME:SPLIT, or NAME:SPLIT:ROWS, which streams the first ROWS rows.

    NAME:SPLIT:* streams all, and begins again at the end. NAME is org/name on the hub, a folder of `save_to_disk`, or a
    folder of data files; SPLIT is train unless given.
    Raises UnsupportedError without datasets, UsageError for a name that is none, NotFoundError.
    """
    datasets = _library("datasets")
    folder, split, rows = _parsed(name)
    if rows is not None and offline and not Path(folder).is_dir():
        raise UsageError(f"hf:{name} is streamed from the hub, which --offline forbids: leave one of the two out")
    try:
        found = _loaded(datasets, folder, split, is_streamed=rows is not None, offline=offline)
        for number, row in enumerate(_passes(found, rows), start=1):
            yield _without_nulls(row), f"hf:{name}, row {number}"
    except LlamitaError:
        raise
    except (OSError, ValueError, KeyError) as error:  # what datasets raises for names, splits, networks and files
        raise NotFoundError(f"the dataset hf:{name} cannot be read ({_first_line(error)}): check its name") from error


def _passes(found: Any, rows: str | None) -> Iterator[dict[str, Any]]:
    """All rows once, the first of them, or all again and again as long as there are any."""
    if rows is None or rows != "*":
        yield from found if rows is None else found.take(int(rows))
        return
    while True:
        is_empty = True
        for row in found:
            is_empty = False
            yield row
        if is_empty:
            return


def _parsed(name: str) -> tuple[str, str, str | None]:
    """The name, the split and the rows of NAME:SPLIT:ROWS."""
    found = NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            f"hf:{name} is no dataset: write hf:NAME, hf:NAME:SPLIT, hf:NAME:SPLIT:ROWS or hf:NAME:SPLIT:*"
        )
    folder, split, rows = found.groups()
    return folder, split or "train", rows


def _loaded(datasets: ModuleType, folder: str, split: str, *, is_streamed: bool, offline: bool) -> Any:
    path = named_path(folder)
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        return found[split] if (path / "dataset_dict.json").is_file() else found
    settings = datasets.DownloadConfig(local_files_only=offline)
    return datasets.load_dataset(str(folder), split=split, streaming=is_streamed, download_config=settings)


def _library(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UnsupportedError(f"{package} is not installed: pip install 'llamita[train]'") from None


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the columns that it has no value in: tables give every row all columns."""
    return {name: value for name, value in row.items() if value is not None}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
