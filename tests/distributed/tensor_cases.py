"""What two processes compute under tensor parallelism, next to what one computes."""

from math import prod
from typing import Any, cast

import torch
from torch import distributed, nn

from llamita.adapters.config import LoraConfig
from llamita.adapters.lora import add_lora, set_adapter
from llamita.config import LlamaConfig
from llamita.data.loader import Batch, Loader
from llamita.model.llama import LlamaForCausalLM
from llamita.model.stored import StoredWeight
from llamita.parallel.mesh import Degrees, processes
from llamita.parallel.ranks import DataRanks
from llamita.parallel.shard import Pass, local, shard, whole
from llamita.parallel.stages import tied_weight
from llamita.parallel.tensor import shard_for_training, sharded_loss
from llamita.quant.surgery import quantize
from llamita.train import optim
from llamita.train.loop import backward, evaluate, gradients_of
from llamita.train.recipe import Recipe
from llamita.train.run import Run

STEPS = 20
RECIPE = Recipe(task="pretrain", optimizer="adamw", precision="fp32", micro_rows=2, batch_tokens=52, length=13)
# Sizes differ pairwise; neither the vocabulary, nor the hidden size, nor the tokens of a row are even.
CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=45, intermediate_size=86, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
    num_hidden_layers=2, max_position_embeddings=64,
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"tie_word_embeddings": False},
    "tied, with biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "adapters": {"tie_word_embeddings": True, "attention_bias": True},
    "adapted blocks": {"tie_word_embeddings": True, "num_hidden_layers": 1},
}
RECOMPUTED = ("tied, with biases",)


def batch(step: int) -> Batch:
    """Rows of two packed documents, of which each row learns other tokens."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randint(CONFIG.vocab_size, (2, 4, 13), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    positions = torch.cat([torch.arange(5), torch.arange(8)]).expand(4, -1)
    return Batch(inputs, targets, positions)


def model_of(changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A model whose biases and norms are random too."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG.replace(**changes))
    for name, weight in model.named_parameters():
        if name.endswith("bias") or weight.ndim == 1:
            nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    return model.to(dtype)


def variant(name: str) -> LlamaForCausalLM:
    """A model of VARIANTS; an adapter's B is random too."""
    model = model_of(VARIANTS[name])
    if name == "adapted blocks":
        quantize(model, "int8")
        add_lora(model, LoraConfig(r=3, target_modules=("q_proj", "o_proj")))
    if name == "adapters":
        add_lora(model, LoraConfig(r=3, target_modules=("embed_tokens", "v_proj")))
        add_lora(model, LoraConfig(r=2, target_modules=("q_proj", "o_proj", "down_proj"), use_dora=True), "lengths")
        set_adapter(model, "default", "lengths")
    for key, weight in model.double().named_parameters():
        if key.endswith(".B"):
            nn.init.normal_(weight, std=0.05)
    return model


def numbers(model: LlamaForCausalLM) -> int:
    """How many numbers of its weights a process keeps."""
    stored = {id(one.matrix): prod(one.matrix.shape) for one in model.modules() if isinstance(one, StoredWeight)}
    return sum(local(weight).numel() for weight in model.parameters()) + sum(stored.values())


def is_tied(model: LlamaForCausalLM) -> bool:
    """Whether head and embedding share a weight, plain or in blocks."""
    matrices = {id(one.matrix) for one in (model.lm_head, model.model.embed_tokens) if isinstance(one, StoredWeight)}
    return len(matrices) == 1 or tied_weight(model) is not None


def trained(model: LlamaForCausalLM, steps: int, ranks: DataRanks | None = None) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of AdamW, with accumulation and clipping, by the steps of the loop.

    Last comes the loss of rows that are held out, twice.
    """
    ranks, root = ranks or DataRanks(), Pass(model.train())
    if ranks.mesh is not None:
        shard(root, model.model.layers, ranks.mesh)
    optimizers, loader, seen = optim.build("adamw", model, lr=2e-3, weight_decay=0.1), cast("Loader", None), []
    run = Run(model, optimizers, loader, steps, ranks=ranks, sharded=root)
    task, gradients = RECIPE.training_task(), gradients_of(run, RECIPE)
    with sharded_loss(model):
        for step in range(steps):
            loss = backward(run, task, batch(step), RECIPE, gradients)
            seen.append((loss, gradients.clip(1.0)))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        held_out, _ = evaluate(run, task, [batch(steps), batch(steps + 1)], RECIPE.precision)
    return [*seen, (held_out, held_out)]


def largest(pairs: Any) -> float:
    """The largest difference of pairs of tensors or of numbers."""
    double = torch.float64  # of which torch makes fp32 if it is not told
    return max(
        float((torch.as_tensor(a, dtype=double) - torch.as_tensor(b, dtype=double)).detach().abs().max())
        for a, b in pairs
    )


def alone(name: str, steps: int) -> tuple[list[tuple[float, float]], list[torch.Tensor]]:
    """What one process has seen and made in some steps, which the first computes and tells the others."""
    found = []
    if distributed.get_rank() == 0:
        model = variant(name)
        found = [trained(model, steps), [weight.detach() for weight in model.parameters()]]
    told = [found]
    distributed.broadcast_object_list(told)
    return told[0][0], told[0][1]


def training(count: str, *names: str) -> dict[str, Any]:
    """How far some steps are from those of one process, by variant; and what share of the weights a process keeps.

    Two processes shard each matrix, and where there are more they share the rows.
    """
    found: dict[str, Any] = {}
    with processes(Degrees(tp=2)) as mesh:
        assert mesh is not None
        for name in names:
            (seen, weights), sharded = alone(name, int(count)), variant(name)
            every = numbers(sharded)
            shard_for_training(sharded, mesh)
            if name in RECOMPUTED:
                sharded.gradient_checkpointing_enable()
            steps = zip(seen, trained(sharded, int(count), DataRanks(mesh)), strict=True)
            found[name] = {
                "steps": largest(pair for ours in steps for pair in zip(*ours, strict=True)),
                "weights": largest((a, whole(b)) for a, b in zip(weights, sharded.parameters(), strict=True)),
                "kept": numbers(sharded) / every,
                "tied": is_tied(sharded),
            }
    return found
