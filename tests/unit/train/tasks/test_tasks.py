"""Tasks: which fits the data, and what each takes."""

from pathlib import Path

import pytest

from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.load import load_tokenizer
from llamita.train.tasks import TASKS, TaskOptions, task_of

TEXT, ASKED = Record({"text": "a"}, "x:1"), Record({"prompt": "a", "completion": "b"}, "x:2")


def test_the_task_is_the_data_s() -> None:
    assert task_of([ASKED]) == "sft"
    assert task_of([ASKED, TEXT]) == "pretrain"


@pytest.mark.parametrize("label", [True, False, 0, 1])
def test_a_rating_is_true_or_false_or_a_bit(label: bool | int, small_path: Path) -> None:
    rated = [Record({"prompt": "a", "completion": text, "label": label}, "x:1") for text in ("b", "c")]
    assert task_of(rated) == "dpo"
    documents = TASKS["dpo"](TaskOptions(loss="kto")).documents(rated, load_tokenizer(small_path))
    assert [one.label for one in documents] == [1.0 if label else -1.0] * 2


@pytest.mark.parametrize("label", ["true", 2, 1.0, None])
def test_a_loss_of_preferences_is_never_left_out(label: object, small_path: Path) -> None:
    """Other labels are a field like any other, and say nothing of what is to be learned."""
    records = [Record({"prompt": "a", "completion": "b", "label": label}, "x:1")]
    assert task_of(records) == "sft"
    for loss, message in {"kto": "x:1 has no rating: .* label", "ipo": "x:1 is no pair: give"}.items():
        assert task_of(records, loss=loss) == "dpo"
        with pytest.raises(UsageError, match=message):
            TASKS["dpo"](TaskOptions(loss=loss)).documents(records, load_tokenizer(small_path))


def test_sft_refuses_text_without_a_prompt() -> None:
    with pytest.raises(UsageError, match="x:1 has no prompt, which sft needs"):
        TASKS["sft"](TaskOptions()).documents([ASKED, TEXT], None)  # type: ignore[arg-type]
