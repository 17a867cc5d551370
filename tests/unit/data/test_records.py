"""Files to records, and what is said of files that are none."""

from pathlib import Path

import pytest

from llamita.data.records import read_records
from llamita.errors import BrokenFileError, NotFoundError, UsageError


def test_text_is_cut_at_form_feeds_and_jsonl_at_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ftwo\f \n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(
        '{"text": "three\u2028"}\n\n{"prompt": "p", "completion": "c", "id": 7}\n{"messages": [{"role": "user"}]}\n',
        encoding="utf-8",
    )
    records = read_records([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert [dict(record.fields) for record in records] == [
        {"text": "one"},
        {"text": "two"},
        {"text": "three\u2028"},
        {"prompt": "p", "completion": "c"},
        {"messages": [{"role": "user"}]},
    ]
    assert [record.is_masked for record in records] == [False, False, False, True, True]
    assert records[3].where.endswith("b.jsonl:3")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", UsageError, "x.jsonl has no text to train on: leave it out"),
        ("\n  \n", UsageError, "x.jsonl has no text to train on: leave it out"),
        ('{"text": "a"}\n{"txt": "b"}', UsageError, "x.jsonl:2 holds .*needs the field text"),
        ('{"prompts": "b"}', UsageError, "prompt and completion"),
        ("1", UsageError, "x.jsonl:1 holds 1: a record needs the field"),
        ("[1]", UsageError, "a line is one record, and a file that is a list of them is named .json"),
        ('{"prompt": "a", "completion": NaN}', UsageError, "x.jsonl:1: completion is nan: it must be a text or a list"),
        ('{"text": ["a"]}', UsageError, r"x.jsonl:1: text is \['a'\]: it must be a text"),
        ('{"messages": "[]"}', UsageError, "x.jsonl:1: messages is '..': it must be a list of messages"),
        ('{"instruction": "a", "output": "b"}', UsageError, "rename what is asked prompt, and the answer completion"),
        ('{"conversations": []}', UsageError, "rename conversations messages, and their from and value role and"),
        ('{"chosen": "a", "rejected": "b"}', UsageError, "a pair needs its prompt too: move there what chosen and"),
        (
            '{"text": "a", "text": "b"}',
            BrokenFileError,
            "x.jsonl:1 is not valid JSON .a name occurs twice in one object.",
        ),
        ('{"text": ', BrokenFileError, "x.jsonl:1 is not valid JSON"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_records([path])


def test_json_is_a_list_of_records_or_a_record_a_line(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('\n[{"text": "a"},\n {"prompt": "p", "completion": "c"}]', encoding="utf-8")
    (tmp_path / "lines.json").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    records = read_records([tmp_path / "list.json", tmp_path / "lines.json"])
    assert [dict(record.fields) for record in records[:2]] == [{"text": "a"}, {"prompt": "p", "completion": "c"}]
    assert [record.fields["text"] for record in records[2:]] == ["a", "b"]
    assert records[1].where.endswith("list.json, record 2")
    for text, error, message in (
        ("[]", UsageError, "wrong.json has no text to train on"),
        ('[{"text": "a"}', BrokenFileError, "wrong.json is not valid JSON"),
        ('[{"instruction": "a"}]', UsageError, "wrong.json, record 1 holds .*rename what is asked prompt"),
        ('{\n "text": "a"\n}', BrokenFileError, "wrong.json:1 is not valid JSON"),
    ):
        (tmp_path / "wrong.json").write_text(text, encoding="utf-8")
        with pytest.raises(error, match=message):
            read_records([tmp_path / "wrong.json"])


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\f \n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"b\.txt has no text to train on"):
        read_records([tmp_path / "a.txt", tmp_path / "b.txt"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        read_records([tmp_path / "nothing.txt"])
