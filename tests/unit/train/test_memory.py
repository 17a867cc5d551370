"""What --dry-run says before anything is allocated is what a run then takes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llamita.adapters.lora import add_lora
from llamita.bench.peak_memory import peak_bytes
from llamita.config import LlamaConfig
from llamita.data.documents import IGNORED
from llamita.data.loader import Loader
from llamita.data.packing import Rows
from llamita.errors import UnsupportedError
from llamita.model.llama import LlamaForCausalLM
from llamita.train import memory, savings
from llamita.train.live_tensors import LiveTensors
from llamita.train.loop import train
from llamita.train.method import METHODS
from llamita.train.recipe import Recipe
from llamita.train.run import Run
from llamita.train.tasks import token_loss

CONFIG = LlamaConfig(
    vocab_size=608, hidden_size=96, intermediate_size=264, num_attention_heads=6, num_key_value_heads=2,
    num_hidden_layers=3, max_position_embeddings=64,
)  # fmt: skip
BY_32 = CONFIG.replace(hidden_size=128, intermediate_size=352, num_attention_heads=4)  # which our kernels know
RECIPE = Recipe(
    task="pretrain", length=64, batch_tokens=512, micro_rows=8, precision="fp32", optimizer="adamw", steps=2
)


def measured(recipe: Recipe, config: LlamaConfig) -> int:
    """The peak of the tensors of a real run."""
    tokens = torch.arange(24 * 64, dtype=torch.int32).reshape(24, 64) % 608
    documents = (torch.arange(64, dtype=torch.int32) // 40).expand(24, -1).contiguous()
    loader = Loader(Rows(tokens, tokens.where(tokens != IGNORED, 0), documents), seed=0)
    with LiveTensors() as live:
        model = LlamaForCausalLM(config).train()
        for weight in model.parameters():  # as if of a checkpoint in bf16
            weight.data.copy_(weight.data.bfloat16())
        if METHODS[recipe.method].is_adapter:
            add_lora(model, recipe.lora)
        savings.prepare(model, recipe)
        run = Run(model, savings.optimizers(model, recipe), loader, recipe.steps or 1)
        for _ in train(run, recipe, held_out=[], should_stop=lambda: False):
            pass
    return live.peak


@pytest.mark.parametrize("change", [
    {}, {"precision": "bf16"}, {"optimizer": "muon"}, {"optimizer": "adafactor"}, {"optimizer": "adamw8bit"},
    {"recompute": "full"},
    {"recompute": "full", "recompute_every": 2}, {"micro_rows": 3}, {"weights": "bf16"},
    {"optimizer_step": "in-backward", "clip": 0.0}, {"optimizer_step": "in-backward", "clip": 0.0, "weights": "bf16"},
], ids=str)  # fmt: skip
def test_the_estimate_is_within_ten_percent_of_a_run(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "LOGITS", 608 * 150)
    recipe = replace(RECIPE, **change)
    config = CONFIG.replace(num_hidden_layers=3 if recipe.recompute_every > 1 else 2)
    assert memory.estimate(config, recipe).peak == pytest.approx(measured(recipe, config), rel=0.1)


@pytest.mark.parametrize("change", [{}, {"recompute": "full"}, {"method": "lora", "model": "any"}], ids=str)
def test_the_estimate_knows_what_our_products_take(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "LOGITS", 608 * 150)
    recipe = replace(RECIPE, precision="bf16", **change)
    assert memory.estimate(BY_32, recipe).peak == pytest.approx(measured(recipe, BY_32), rel=0.03)


def test_the_parts_are_what_they_are_called() -> None:
    found = memory.estimate(CONFIG, RECIPE)
    model = LlamaForCausalLM(CONFIG)
    size = sum(weight.nbytes for weight in model.parameters())
    assert found.parameters == size // 4 and size <= found.weights < 1.01 * size
    assert found.gradients == size and 2 * size <= found.optimizer < 2.02 * size
    assert len(found.layers) == 3 and max(found.layers) < 1.1 * min(found.layers)
    assert found.loss > 512 * 608 * 4  # the logits of all 512 tokens, which are fewer than a chunk
    assert (
        found.peak < found.weights + found.gradients + found.optimizer + sum(found.layers) + found.around + found.loss
    )
    recomputed = memory.estimate(CONFIG, replace(RECIPE, recompute="full"))
    assert max(recomputed.layers) < min(found.layers) / 4 and recomputed.peak < found.peak


def test_nothing_is_allocated() -> None:
    """A model of the sizes of 8b, with 4 of its 32 layers: 8 GB in fp32, and as much again three times."""
    config = CONFIG.replace(hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32,
                            num_key_value_heads=8, vocab_size=128256, head_dim=128)  # fmt: skip
    found: list[memory.Estimate] = []
    held = peak_bytes(lambda: (found.append(memory.estimate(config, RECIPE)), 0.0)[1])
    assert found[0].parameters == 1_923_125_248 and found[0].peak > 4 * 4 * 1.9e9
    assert held < 1e6


def test_each_saving_that_is_left_is_estimated_alone() -> None:
    found = memory.with_savings(CONFIG.replace(num_hidden_layers=1), replace(RECIPE, recompute="full", micro_rows=4))
    assert list(found) == [
        "--micro-rows 1",
        "--weights bf16",
        "--optimizer adamw8bit",
        "--optimizer adafactor",
        "--precision bf16",
    ]
    assert found["--weights bf16"].weights < 0.52 * found["--micro-rows 1"].weights


def test_other_steps_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"^--dry-run knows the steps of pretrain and sft .*, not of dpo by full"
    ):
        memory.estimate(CONFIG, replace(RECIPE, task="dpo"))


def test_live_tensors_are_what_the_profiler_counts() -> None:
    def work() -> float:
        kept = [torch.zeros(100, 7)]
        for size in (300, 20, 500):
            kept.append(torch.ones(size) * 2)
        kept.append(kept[0].t()[1:])
        del kept[2]
        return float(torch.ones(77).sum())

    with LiveTensors() as live:
        work()
    assert live.peak == pytest.approx(peak_bytes(work), abs=64) and live.now == 0  # 64: numbers that Python asks for
