"""Training tasks as a table: which documents a record becomes, and the loss of a batch."""

from collections.abc import Mapping, Sequence

from llamita.data.records import Record
from llamita.train.tasks.pretrain import PRETRAIN
from llamita.train.tasks.sft import SFT
from llamita.train.tasks.task import Task

TASKS: Mapping[str, Task] = {"pretrain": PRETRAIN, "sft": SFT}


def task_of(records: Sequence[Record]) -> str:
    """The task that fits the data: sft where every record has a prompt, else pretrain."""
    return "sft" if all(record.is_masked for record in records) else "pretrain"
