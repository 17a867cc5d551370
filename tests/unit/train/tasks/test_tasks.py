"""Tasks: which fits the data, and what each takes."""

import pytest

from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.train.tasks import TASKS, TaskOptions, task_of

TEXT, ASKED = Record({"text": "a"}, "x:1"), Record({"prompt": "a", "completion": "b"}, "x:2")


def test_the_task_is_the_data_s() -> None:
    assert task_of([ASKED]) == "sft"
    assert task_of([ASKED, TEXT]) == "pretrain"


def test_sft_refuses_text_without_a_prompt() -> None:
    with pytest.raises(UsageError, match="x:1 has no prompt, which sft needs"):
        TASKS["sft"](TaskOptions()).documents([ASKED, TEXT], None)  # type: ignore[arg-type]
