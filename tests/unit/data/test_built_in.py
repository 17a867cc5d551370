"""Built-in data by name."""

from pathlib import Path

import pytest

from llamita.data import built_in
from llamita.data.built_in import DOCSTRINGS, read_data
from llamita.data.records import Record
from llamita.errors import UsageError

DOC = Record({"text": "doc"}, "x")


def test_names_and_files_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_in.BUILT_IN, DOCSTRINGS, lambda: [DOC])  # type: ignore[arg-type]
    (tmp_path / "a.txt").write_text("one\ftwo", encoding="utf-8")
    records = read_data(["built-in:swap", str(tmp_path / "a.txt")])
    assert [record.form for record in records[-3:]] == ["completion", "text", "text"]
    assert read_data([]) == [DOC]
    with pytest.raises(UsageError, match="there is no data built-in:swop: use one of built-in:docstrings, built-in:s"):
        read_data(["built-in:swop"])
