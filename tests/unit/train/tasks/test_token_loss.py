"""The loss of the next token."""

import pytest
import torch

from llamita.model.llama import LlamaForCausalLM
from llamita.train.recipe import Recipe
from llamita.train.tasks import token_loss
from llamita.train.tasks.token_loss import token_losses
from tests.unit.train.tiny import CONFIG, make_rows, make_run


def test_a_large_batch_s_logits_come_in_chunks_of_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    batch = make_run(make_rows()).loader.next(4)
    whole = token_losses(model, batch)
    monkeypatch.setattr(token_loss, "FEWEST", 7)
    monkeypatch.setattr(token_loss, "LOGITS", 0)
    assert torch.allclose(token_losses(model, batch), whole, rtol=1e-6)


def test_z_loss_is_for_training_alone() -> None:
    model = LlamaForCausalLM(CONFIG.replace(attention_dropout=0.0)).train()
    batch = make_run(make_rows()).loader.next(4)
    loss = Recipe(task="pretrain", z_loss=0.1).training_task().loss
    assert loss(model, batch) > token_losses(model, batch) + 1
    assert loss(model.eval(), batch) == token_losses(model, batch)
