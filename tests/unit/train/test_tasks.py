"""Tasks: which fits the data, and what each takes."""

import pytest
import torch

from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.train import tasks
from llamita.train.tasks import TASKS, task_of, token_losses
from tests.unit.train.tiny import CONFIG, make_rows, make_run

TEXT, ASKED = Record({"text": "a"}, "x:1"), Record({"prompt": "a", "completion": "b"}, "x:2")


def test_the_task_is_the_data_s() -> None:
    assert task_of([ASKED]) == "sft"
    assert task_of([ASKED, TEXT]) == "pretrain"


def test_sft_refuses_text_without_a_prompt() -> None:
    with pytest.raises(UsageError, match="x:1 has no prompt, which sft needs"):
        TASKS["sft"].documents([ASKED, TEXT], None)  # type: ignore[arg-type]


def test_a_large_batch_s_logits_come_in_chunks_of_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    batch = make_run(make_rows()).loader.next(4)
    whole = token_losses(model, batch)
    monkeypatch.setattr(tasks, "CHUNK", 7)
    assert torch.allclose(token_losses(model, batch), whole, rtol=1e-6)
