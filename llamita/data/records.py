"""Files of training data, read as records: texts, prompts with completions, messages, pairs, and prompts to try."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamita.checks import parsed_json, quoted
from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import read_text

LINES = (".jsonl", ".ndjson")
SEPARATOR = "\f"  # between the documents of a text file
TEXT = (str,)
EITHER = (str, list)  # a text, or messages
# The fields of a record, and what each may hold; a record has the first form that fits.
FORMS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "text": {"text": TEXT},
    "rated completion": {"prompt": EITHER, "completion": EITHER, "label": (bool,)},
    "completion": {"prompt": EITHER, "completion": EITHER},
    "pair": {"prompt": EITHER, "chosen": EITHER, "rejected": EITHER},
    "messages": {"messages": (list,)},
    "prompt": {"prompt": EITHER},
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
    def form(self) -> str | None:
        """The first of FORMS that the fields have; None where no form fits."""
        fits = (name for name, kinds in FORMS.items() if all(_is(self.fields.get(f), kinds[f]) for f in kinds))
        return next(fits, None)


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All records of the files, in order: .jsonl holds one a line, any other file is text, cut at form feeds.

    Raises UsageError where there is none, or a line lacks its fields; NotFoundError, AccessError, BrokenFileError.
    """
    paths = list(paths)
    records = [record for path in paths for record in _read(path)]
    if not records:
        raise UsageError(f"{', '.join(map(str, paths)) or 'the data'} has no text to train on: give files that have")
    return records


def _read(path: Path) -> Iterator[Record]:
    text = read_text(path)
    if path.suffix.lower() in LINES:
        for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
            if line.strip():
                yield _record(line, f"{path}:{number}")
    else:
        for number, document in enumerate(text.split(SEPARATOR), start=1):
            if document.strip():
                yield Record({"text": document}, f"{path}, document {number}")


def _record(line: str, where: str) -> Record:
    try:
        value = parsed_json(line)
    except ValueError as error:
        raise BrokenFileError(f"{where} is not valid JSON ({error}): mend or remove the line") from error
    record = Record(value if isinstance(value, dict) else {}, where)
    if record.form is None:
        raise UsageError(
            f"{where} holds {quoted(value)}: a line needs the field text, the fields prompt and completion, messages, "
            "or prompt, chosen and rejected"
        )
    return record if record.form == WHOLE else Record({name: value[name] for name in FORMS[record.form]}, where)


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds)
