"""Names of a config's fields in other files and libraries."""

from collections.abc import Mapping
from typing import Any

from llamita import checks
from llamita.errors import UsageError

OTHER_NAMES: Mapping[str, str] = {"torch_dtype": "dtype", "_attn_implementation": "attn_implementation"}


def renamed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by the fields' own names, which win over the others; the labels in one of their three spellings."""
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
