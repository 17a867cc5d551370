"""What of a pipeline one process can show; the rest is in tests/distributed."""

import pytest
import torch

from llamita.data.loader import Batch
from llamita.errors import UsageError
from llamita.parallel import pipeline
from llamita.parallel.pipeline import PP_SCHEDULES, check_micro_batches


def test_schedules_are_torch_s() -> None:
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    assert all(issubclass(get_schedule_class(name), PipelineScheduleSingle) for name in PP_SCHEDULES.values())


@pytest.mark.parametrize(
    ("rows", "remedy"), [(5, "set --micro-rows to 1"), (3, "raise --batch-tokens so that it has 4 rows")]
)
def test_too_few_micro_batches_are_refused(rows: int, remedy: str) -> None:
    check_micro_batches(1, 4, "gpipe", rows=rows)
    check_micro_batches(1, 1, "1f1b", rows=rows)
    check_micro_batches(4, 4, "1f1b", rows=rows)
    sentence = f"--pp 4 by the schedule 1f1b needs 4 micro-batches in a step, and there are 3: {remedy}, or take "
    with pytest.raises(UsageError, match=f"^{sentence}--pp-schedule gpipe$"):
        check_micro_batches(3, 4, "1f1b", rows=rows)


def test_micro_batches_are_made_even_by_rows_that_learn_nothing() -> None:
    tokens = torch.arange(1, 36).view(5, 7)
    batch = Batch(tokens, tokens + 50, tokens % 7)
    parts = pipeline._even(batch.split(2))
    assert [len(part) for part in parts] == [2, 2, 2]
    last = parts[-1]
    assert torch.equal(last.inputs[:1], tokens[4:])
    assert isinstance(last, Batch)
    assert sum(part.learned for part in batch.split(2)) == batch.learned == 35
    assert last.learned == 7
