"""Parquet files and datasets: the same records as the same rows of a .jsonl, and one sentence for what is wrong."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamita.data.records import read_records
from llamita.errors import BrokenFileError, NotFoundError, UnsupportedError, UsageError

ROWS = [
    {"text": "one", "id": 1},
    {"text": None, "prompt": "p", "completion": "c"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def test_a_parquet_file_has_the_records_of_the_same_jsonl(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is no dependency of the tests")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(columns(ROWS)), tmp_path / "a.parquet", row_group_size=2)
    lines = "\n".join(json.dumps(without_nulls(row)) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    tables, texts = read_records([tmp_path / "a.parquet"]), read_records([tmp_path / "a.jsonl"])
    assert [dict(record.fields) for record in tables] == [dict(record.fields) for record in texts]
    assert tables[1].where.endswith("a.parquet, row 2")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(BrokenFileError, match=r"b\.parquet is no whole parquet file"):
        read_records([tmp_path / "b.parquet"])
    with pytest.raises(NotFoundError, match=r"c\.parquet"):
        read_records([tmp_path / "c.parquet"])


def columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with all columns, as tables have them."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def test_a_dataset_is_read_whole_or_streamed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is no dependency of the tests")
    made = datasets.Dataset.from_list([{"text": f"text {n}"} for n in range(5)])
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "splits"))
    files = tmp_path / "files"
    files.mkdir()
    (files / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', encoding="utf-8")
    texts = {
        name: [record.fields["text"] for record in read_records([f"hf:{tmp_path}/{name}"])]
        for name in ("one", "splits", "splits:test", "files", "files:train:2", "one:train:3")
    }
    assert texts["one"] == texts["splits"] == [f"text {n}" for n in range(5)]
    assert texts["splits:test"] == ["text 0"]
    assert (texts["files"], texts["files:train:2"]) == (["a", "b", "c"], ["a", "b"])
    assert texts["one:train:3"] == ["text 0", "text 1", "text 2"]
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_records([f"hf:{tmp_path}/files:nosuchsplit"])


def test_datasets_are_asked_as_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, **options: Any) -> Any:
        asked.append((name, options["split"], options["streaming"], options["download_config"]))
        rows = [{"text": "a", "label": None}, {"text": "b"}, {"text": "c"}]
        return SimpleNamespace(take=lambda count: iter(rows[:count])) if options["streaming"] else rows

    stand_in = SimpleNamespace(load_dataset=load_dataset, DownloadConfig=lambda local_files_only: local_files_only)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)  # type: ignore[arg-type]
    assert [record.fields["text"] for record in read_records(["hf:org/name:train[:2%]"])] == ["a", "b", "c"]
    records = read_records(["hf:org/name:test:2"])
    assert [(record.fields["text"], record.where) for record in records] == [
        ("a", "hf:org/name:test:2, row 1"),
        ("b", "hf:org/name:test:2, row 2"),
    ]
    assert len(read_records(["hf:org/name"], offline=True)) == 3
    assert asked == [
        ("org/name", "train[:2%]", False, False),
        ("org/name", "test", True, False),
        ("org/name", "train", False, True),
    ]
    with pytest.raises(UsageError, match="is streamed from the hub, which --offline forbids"):
        read_records(["hf:org/name:test:2"], offline=True)


@pytest.mark.parametrize("name", ["hf:", "hf:org/name:train:0", "hf:org/name:train:many"])
def test_a_name_that_is_no_dataset_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is no dataset: write hf:NAME, hf:NAME:SPLIT, hf:NAME:SPLIT:ROWS or"):
        read_records([name])


@pytest.mark.parametrize(("library", "source"), [("pyarrow", "a.parquet"), ("datasets", "hf:org/name")])
def test_without_its_library_a_source_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, library: str, source: str
) -> None:
    for name in (library, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=rf"{library} is not installed: pip install 'llamita\[train\]'"):
        read_records([source])
