"""What two processes compute under tensor parallelism, next to what one computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from llamita.config import LlamaConfig
from llamita.data.loader import Batch
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.mesh import Degrees, processes
from llamita.parallel.tensor import gathered, shard_for_training, sharded_loss
from llamita.train import optim
from llamita.train.tasks.token_loss import token_losses

STEPS = 20
# Sizes differ pairwise; neither the vocabulary, nor the hidden size, nor the tokens of a row are even.
CONFIG = LlamaConfig(
    vocab_size=97, hidden_size=45, intermediate_size=86, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
    num_hidden_layers=3, max_position_embeddings=64,
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"tie_word_embeddings": False},
    "tied, with biases": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
}
RECOMPUTED = ("tied, with biases",)


def batch(step: int) -> Batch:
    """Rows of two packed documents, of which each row learns other tokens."""
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randint(CONFIG.vocab_size, (2, 3, 13), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    positions = torch.cat([torch.arange(5), torch.arange(8)]).expand(3, -1)
    return Batch(inputs, targets, positions)


def model_of(changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """A model whose biases and norms are random too."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG.replace(**changes))
    for name, weight in model.named_parameters():
        if name.endswith("bias") or weight.ndim == 1:
            nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    return model.to(dtype)


def trained(model: LlamaForCausalLM, loss_context: AbstractContextManager[None]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, of AdamW with clipping."""
    model.train()
    optimizers, seen = optim.build("adamw", model, lr=2e-3, weight_decay=0.1), []
    with loss_context:
        for step in range(STEPS):
            rows = batch(step)
            loss = token_losses(model, rows) / rows.learned
            loss.backward()
            norm = gathered(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            seen.append((loss.item(), norm.item()))
    return seen


def largest(pairs: Any) -> float:
    """The largest difference of pairs of tensors or of numbers."""
    return max(float((torch.as_tensor(a) - torch.as_tensor(b)).abs().max()) for a, b in pairs)


def training() -> dict[str, Any]:
    """How far 20 steps are from those of one process, for every variant; and how many weights a process keeps."""
    found: dict[str, Any] = {}
    with processes(Degrees(tp=2)) as mesh:
        assert mesh is not None
        for name, changes in VARIANTS.items():
            one, sharded = model_of(changes), model_of(changes)
            shard_for_training(sharded, mesh)
            if name in RECOMPUTED:
                sharded.gradient_checkpointing_enable()
            steps = zip(trained(one, nullcontext()), trained(sharded, sharded_loss()), strict=True)
            found[name] = {
                "steps": largest(pair for ours in steps for pair in zip(*ours, strict=True)),
                "weights": largest(
                    (a, gathered(b)) for a, b in zip(one.parameters(), sharded.parameters(), strict=True)
                ),
                "kept": sum(own(weight).numel() for weight in sharded.parameters()) / one.num_parameters(),
                "tied": sharded.lm_head.weight is sharded.model.embed_tokens.weight,
            }
    return found


def own(weight: Tensor) -> Tensor:
    """What this process keeps of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight  # type: ignore[operator]
