"""What of a pipeline one process can show; the rest is in tests/distributed."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llamita.data.loader import Batch
from llamita.errors import UnsupportedError, UsageError
from llamita.parallel import pipeline
from llamita.parallel.pipeline import PP_SCHEDULES, Pipeline, check_micro_batches


def test_schedules_are_torch_s() -> None:
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    found = {name: issubclass(get_schedule_class(own), PipelineScheduleSingle) for name, own in PP_SCHEDULES.items()}
    assert found == {"1f1b": True, "gpipe": True, "interleaved": False}


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


def test_micro_batches_that_interleaved_stages_cannot_take_in_turns_are_refused() -> None:
    for count, pp in ((3, 4), (10, 4), (7, 1), (3, 2)):
        check_micro_batches(count, pp, "interleaved", rows=count)
    sentence = (
        "^--pp 2 by the schedule interleaved takes 2 micro-batches at once, and 5 in a step are no multiple: "
        "set --batch-tokens and --micro-rows so that they are 4, or take --pp-schedule 1f1b$"
    )
    with pytest.raises(UsageError, match=sentence):
        check_micro_batches(5, 2, "interleaved", rows=5)


@pytest.mark.parametrize("cause", [UnsupportedError("no such layer"), None])
def test_what_a_stage_raises_is_not_hidden_by_torch(cause: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*given: Any, **named: Any) -> None:
        raise RuntimeError("[Stage 0] failed to run forward") from cause

    stages = object.__new__(Pipeline)
    stages.roots, stages.rank = [cast("Any", SimpleNamespace(work=None))], 1
    monkeypatch.setattr(stages, "_made", lambda parts: SimpleNamespace(step=step))
    with pytest.raises(type(cause) if cause else RuntimeError, match="no such layer" if cause else "failed to run"):
        stages.train(lambda *given: torch.zeros(()), [cast("Any", [1])], lambda number: nullcontext())
    assert stages.roots[0].work is None


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
