"""What processes compute of parts of rows, next to what one computes of whole rows."""

from typing import Any, cast

import torch

from llamita.data.loader import Batch, Loader
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.mesh import Degrees, processes
from llamita.parallel.shard import whole
from llamita.parallel.tensor import sharded_loss
from llamita.train.loop import backward, gradients_of
from llamita.train.recipe import Recipe
from llamita.train.run import start
from tests.distributed.tensor_cases import CONFIG, STEPS, largest, model_of

LENGTH = 14
RECIPE = Recipe(
    task="pretrain", optimizer="adamw", precision="fp32", lr=2e-3, steps=STEPS, threads=1, micro_rows=2, length=LENGTH,
    batch_tokens=4 * LENGTH,
)  # fmt: skip


def batch(step: int) -> Batch:
    """Rows of packed documents; the second half of the last row learns nothing."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randint(CONFIG.vocab_size, (2, 4, LENGTH), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    targets[-1, LENGTH // 2 :] = -100
    # A document ends before, in and at the middle of a row, and nowhere: in rows that one micro-batch has together.
    positions = torch.stack([torch.cat([torch.arange(n), torch.arange(LENGTH - n)]) for n in (4, 9, LENGTH // 2, 0)])
    return Batch(inputs, targets, positions)


def trained(model: LlamaForCausalLM, count: int, mesh: Any = None) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of a run."""
    run = start(RECIPE, model, cast("Loader", None), processes=mesh)
    task, gradients, seen = RECIPE.training_task(), gradients_of(run, RECIPE), []
    with sharded_loss(model):
        for step in range(count):
            loss = backward(run, task, batch(step), RECIPE, gradients)
            seen.append((loss, gradients.clip(1.0)))
            for optimizer in run.optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return seen


def training(tp: str, window: str, count: str) -> dict[str, float]:
    """How far some steps on two parts of each row, and `tp` parts of each matrix, are from those of one process."""
    changes = {"sliding_window": int(window) or None, "tie_word_embeddings": True}
    with processes(Degrees(cp=2, tp=int(tp))) as mesh:
        one, shared = model_of(changes), model_of(changes)
        steps = zip(trained(one, int(count)), trained(shared, int(count), mesh), strict=True)
        return {
            "steps": largest(pair for ours in steps for pair in zip(*ours, strict=True)),
            "weights": largest((a, whole(b)) for a, b in zip(one.parameters(), shared.parameters(), strict=True)),
        }
