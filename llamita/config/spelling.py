"""Names of a config's fields, labels and backends in other files and libraries."""

from collections.abc import Mapping
from typing import Any

from llamita import checks
from llamita.checks import quoted
from llamita.config.validation import MOST
from llamita.errors import UsageError

BACKEND_SYNONYMS = {"flex_attention": "flex", "flash_attn_2": "flash_attention_2"}
OTHER_NAMES: Mapping[str, str] = {"torch_dtype": "dtype", "_attn_implementation": "attn_implementation"}


def renamed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by the fields' own names, which win over the others; the labels in one of their three spellings.

    Raises UsageError for counts of labels that contradict each other.
    """
    others = {OTHER_NAMES[name]: value for name, value in changes.items() if name in OTHER_NAMES}
    changes = others | {name: value for name, value in changes.items() if name not in OTHER_NAMES}
    numbers = changes.pop("label2id", None)
    if numbers is not None and "id2label" not in changes:
        changes["id2label"] = {index: label for label, index in checks.mapping("label2id", numbers).items()}
    if "id2label" in changes:
        count, labels = changes.pop("num_labels", None), checks.labels(changes["id2label"])
        if count not in (None, len(labels)):
            raise UsageError(f"num_labels is {count}, and id2label names {len(labels)}: give one of them")
        changes["num_labels"] = None
    return changes


def resolve_labels(labels: Mapping[int, str], count: int | None) -> Mapping[int, str]:
    """The names of the classes, or of `count` classes without names where that is another number."""
    labels = checks.labels(labels)
    if count is None or count == len(labels):
        return labels
    checks.count("num_labels", count)
    checks.at_most("num_labels", count, MOST["num_labels"])
    return {index: f"LABEL_{index}" for index in range(count)}


def backend_name(name: Any) -> str:
    """Our name of an attention backend, under which others may be known. Raises UsageError for what is no name."""
    if not isinstance(name, str):
        raise UsageError(f"attn_implementation is {quoted(name)}: give the name of one")
    return BACKEND_SYNONYMS.get(name, name)
