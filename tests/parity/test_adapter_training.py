"""Twenty steps of our loop on an adapter equal those of peft and AdamW on transformers' model."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from llamita import LlamaForCausalLM
from llamita.adapters.config import LoraConfig
from llamita.adapters.files import save_adapter
from llamita.data.documents import IGNORED
from llamita.data.loader import Loader
from llamita.train import optim
from llamita.train.loop import train
from llamita.train.method import adapt
from llamita.train.run import Run
from llamita.train.schedule import share
from tests.unit.train.test_loop import NO_DROPOUT, PLAIN
from tests.unit.train.tiny import make_rows

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def loss_of(model: Any, inputs: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    """The summed loss of rows, document by document."""
    total = torch.zeros(())
    for row, place in enumerate(positions):
        for first, stop in pairwise([*(place == 0).nonzero().flatten().tolist(), len(place)]):
            logits = model(input_ids=inputs[row : row + 1, first:stop], use_cache=False).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits, targets[row, first:stop], ignore_index=IGNORED, reduction="sum"
            )
    return total


def reference(model: Any, loader: Loader) -> list[float]:
    """The losses of peft's model: one row after another, AdamW, clipping and the schedule written out."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [  # matrices alone decay
        {
            "params": [one for one in weights if (one.ndim > 1) == is_matrix],
            "weight_decay": PLAIN.weight_decay * is_matrix,
        }
        for is_matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=PLAIN.rate, betas=(0.9, 0.95))
    losses = []
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = PLAIN.rate * share(PLAIN.schedule, step, steps=20, warmup=PLAIN.warmup)
        batch = loader.next(PLAIN.rows)
        loss = loss_of(model, batch.inputs, batch.targets, batch.positions) / batch.learned
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, PLAIN.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.0.self_attn.q_proj": 5, "up_proj": 1}, "alpha_pattern": {"v_proj": 9}},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "layers.1.*.?_proj"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_twenty_steps_equal_peft_s(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    LlamaForCausalLM(NO_DROPOUT.replace(tie_word_embeddings=False)).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapt(
        model, LoraConfig(r=3, lora_alpha=5, **{"target_modules": "all-linear", **options}), block_format=None, seed=7
    )
    save_adapter(model, tmp_path / "start")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "start"), is_trainable=True)
    optimizers = optim.build("adamw", model, lr=PLAIN.rate, weight_decay=PLAIN.weight_decay)
    run = Run(model.train(), optimizers, Loader(make_rows(), seed=0), steps=20)
    ours = [line.loss for line in train(run, PLAIN, held_out=[], should_stop=lambda: False)]
    plain = reference(theirs.train(), Loader(make_rows(), seed=0))
    assert ours[-1] < ours[0]
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) <= 1e-6
    trained = [weight for weight in theirs.parameters() if weight.requires_grad]
    assert len(trained) == len(run.weights()) > 0
    pairs = zip(run.weights().values(), trained, strict=True)
    assert max(float((a - b.detach()).abs().max()) for a, b in pairs) <= 1e-6
