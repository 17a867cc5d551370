"""Training tasks as a table: which documents a record becomes, and the loss of a batch."""

from collections.abc import Mapping, Sequence

from llamita.data.records import Record
from llamita.train.tasks.dpo import dpo
from llamita.train.tasks.grpo import grpo
from llamita.train.tasks.pretrain import pretrain
from llamita.train.tasks.reward import reward
from llamita.train.tasks.sft import sft
from llamita.train.tasks.task import MakeTask, Task, TaskOptions

__all__ = ["TASKS", "TOKEN_TASKS", "Task", "TaskOptions", "task_of"]
TASKS: Mapping[str, MakeTask] = {"pretrain": pretrain, "sft": sft, "dpo": dpo, "reward": reward, "grpo": grpo}
# Those whose loss is a sum over tokens, each row by itself: other tasks compare texts or write them.
TOKEN_TASKS = ("pretrain", "sft")
LEARNED_BY: Mapping[str, str] = {
    "pair": "dpo",
    "rated completion": "dpo",
    "prompt": "grpo",
}  # the form of all records -> their task


def task_of(records: Sequence[Record], *, loss: str = TaskOptions.loss) -> str:
    """The task that fits the data: by LEARNED_BY, else sft where every record has a prompt, else pretrain.

    loss: one that only preferences have says that the data is to hold some, which their task then checks.
    """
    if loss != TaskOptions.loss:
        return "dpo"
    forms = {record.form for record in records}
    if len(forms) == 1 and (task := LEARNED_BY.get(str(*forms))):
        return task
    return "sft" if all(record.is_masked for record in records) else "pretrain"
