"""Files of training data, read as records: texts, prompts with completions, messages, pairs, and prompts to try."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamita.checks import parsed_json, quoted, unique
from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import read_text

DATASET = "hf:"  # before the name of a dataset of Hugging Face
SEPARATOR = "\f"  # between the documents of a text file
TEXT = (str,)
EITHER = (str, list)  # a text, or messages
RATING = (bool,)  # or 0 or 1
# The fields of a record, and what each may hold; a record has the first form that fits.
FORMS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "text": {"text": TEXT},
    "rated completion": {"prompt": EITHER, "completion": EITHER, "label": RATING},
    "completion": {"prompt": EITHER, "completion": EITHER},
    "pair": {"prompt": EITHER, "chosen": EITHER, "rejected": EITHER},
    "messages": {"messages": (list,)},
    "prompt": {"prompt": EITHER},
}
TEXTS = ("text", "prompt", "completion", "chosen", "rejected", "messages")  # the fields with texts
KINDS: Mapping[type, str] = {str: "a text", list: "a list of messages"}
NEEDED = "a record needs the field text, the fields prompt and completion, messages, or prompt, chosen and rejected"
LISTED = "a line is one record, and a file that is a list of them is named .json"
# A field of other trainers' data, and what to do.
HABITS: Mapping[str, str] = {
    "conversations": "rename conversations messages, and their from and value role and content",
    **dict.fromkeys(
        ("instruction", "question", "query", "response", "answer", "output"),
        "rename what is asked prompt, and the answer completion",
    ),
    "chosen": "a pair needs its prompt too: move there what chosen and rejected both begin with",
}
WHOLE = "prompt"  # the form whose records keep their other fields, which say what a good answer is


@dataclass(frozen=True, slots=True)
class Record:
    """One training example and where it stands: `where` is "file:line", for errors."""

    fields: Mapping[str, Any]
    where: str

    @property
    def is_masked(self) -> bool:
        """Whether a part of it is a prompt, of which nothing is to be learned."""
        return "text" not in self.fields

    @property
    def texts(self) -> list[str]:
        """The texts in its fields, those of messages too."""
        return [text for name in TEXTS for text in _texts_of(self.fields.get(name))]

    @property
    def form(self) -> str | None:
        """The first of FORMS that the fields have; None where no form fits."""
        fits = (name for name, kinds in FORMS.items() if all(_is(self.fields.get(f), kinds[f]) for f in kinds))
        return next(fits, None)


def read_records(names: Iterable[str | Path], *, offline: bool = False) -> list[Record]:
    """All records of the sources, in order.

    A name that begins with hf: is a dataset of Hugging Face (`llamita.data.tables.read_dataset`). .jsonl holds a record
    a line, .json a list of records or a record a line, .parquet one a row; any other file is text, cut at form feeds.
    Raises UsageError where a source has none, or a record lacks its fields; NotFoundError, AccessError,
    BrokenFileError; UnsupportedError where the library of a source is not installed.
    """
    records: list[Record] = []
    for name in map(str, names):
        found = list(each_record(name, offline=offline))
        if not found:
            raise UsageError(f"{name} has no text to train on: leave it out, or give a file that has")
        records += found
    if not records:
        raise UsageError("the data has no text to train on: give files that have")
    return records


def each_record(name: str, *, offline: bool = False) -> Iterator[Record]:
    """The records of a source, one after another; an endless dataset gives them without end."""
    if name.startswith(DATASET):
        from llamita.data.tables import read_dataset

        found = read_dataset(name.removeprefix(DATASET), offline=offline)
        return (_record(value, where) for value, where in found)
    path = Path(name)
    return READERS.get(path.suffix.lower(), _texts)(path)


def _lines(path: Path) -> Iterator[Record]:
    return _each_line(path, read_text(path))


def _each_line(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = parsed_json(line, unique)
            except ValueError as error:
                raise BrokenFileError(f"{where} is not valid JSON ({error}): mend or remove the line") from error
            yield _record(value, where)


def _list_or_lines(path: Path) -> Iterator[Record]:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from _each_line(path, text)
        return
    try:
        values = parsed_json(text, unique)
    except ValueError as error:
        raise BrokenFileError(f"{path} is not valid JSON ({error}): mend it, or write a record a line") from error
    for number, value in enumerate(values, start=1):
        yield _record(value, f"{path}, record {number}")


def _texts(path: Path) -> Iterator[Record]:
    for number, document in enumerate(read_text(path).split(SEPARATOR), start=1):
        if document.strip():
            yield Record({"text": document}, f"{path}, document {number}")


def _rows(path: Path) -> Iterator[Record]:
    from llamita.data.tables import read_parquet

    return (_record(value, where) for value, where in read_parquet(path))


# The suffix of a file -> what reads it.
READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _lines, ".ndjson": _lines, ".json": _list_or_lines, ".parquet": _rows,
}  # fmt: skip


def _record(value: Any, where: str) -> Record:
    record = Record(value if isinstance(value, dict) else {}, where)
    if record.form in (None, WHOLE) and (wrong := _wrong_field(record.fields)):
        raise UsageError(f"{where}: {wrong}")
    if record.form is None:
        what = next((what for name, what in HABITS.items() if name in record.fields), NEEDED)
        raise UsageError(f"{where} holds {quoted(value)}: {LISTED if isinstance(value, list) else what}")
    return record if record.form == WHOLE else Record({name: value[name] for name in FORMS[record.form]}, where)


def _wrong_field(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the first field that has the name of a form's, and neither its kind nor no value."""
    for name in TEXTS:
        kinds = next(form[name] for form in FORMS.values() if name in form)
        if fields.get(name) is not None and not _is(fields[name], kinds):
            return f"{name} is {quoted(fields[name])}: it must be {' or '.join(KINDS[kind] for kind in kinds)}"
    return None


def _texts_of(value: Any) -> list[str]:
    """A text, or the contents of messages."""
    if isinstance(value, str):
        return [value]
    messages = value if isinstance(value, list) else []
    return [
        message["content"] for message in messages if isinstance(message, dict) and _is(message.get("content"), TEXT)
    ]


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) or (kinds == RATING and type(value) is int and value in (0, 1))
