"""The training loop of cria: `python -m recipes.cria.train recipes/cria.toml` makes `llamita/cria` from a recipe.

Stopped and started again, it goes on from its last checkpoint exactly: the rows of a step depend on its number alone.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from llamita.model.llama import LlamaForCausalLM
from recipes.cria.corpus import IGNORED, Corpus
from recipes.cria.export import export
from recipes.cria.recipe import Recipe, read_recipe
from recipes.cria.tokens import train_tokenizer


def prepare_tokenizer(recipe: Recipe) -> Tokenizer:
    """The run's tokenizer, trained on the first documents of the corpus if there is none yet."""
    path = recipe.run / "tokenizer.json"
    if not path.exists():
        documents = islice(Corpus(recipe.mix, seed=recipe.seed).stream("tokenizer"), recipe.tokenizer_documents)
        texts = ("".join(segment.text for segment in document) for document in documents)
        plain = (piece for text in texts for piece in re.split(r"<\|\w+\|>", text))
        path.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(plain, vocab_size=int(recipe.shape["vocab_size"])).save(str(path))
    return Tokenizer.from_file(str(path))


def batch(corpus: Corpus, first: int, count: int, tokenizer: Tokenizer, *, length: int) -> tuple[Tensor, Tensor]:
    """Rows `first` to `first + count` of the corpus: tokens and labels, both (B, T) int64."""
    rows = [corpus.row(index, tokenizer, length=length) for index in range(first, first + count)]
    return torch.tensor([tokens for tokens, _ in rows]), torch.tensor([labels for _, labels in rows])


def document_positions(tokens: Tensor, bos: int) -> Tensor:
    """Positions (B, T) that begin at 0 with every document of a row, which makes the model keep documents apart."""
    index = torch.arange(tokens.shape[1]).expand_as(tokens)
    return index - torch.where(tokens == bos, index, 0).cummax(dim=1).values


def token_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of the next token; the labels that are ignored cost no logits."""
    targets = labels[:, 1:]
    is_learned = targets != IGNORED
    positions = document_positions(tokens, model.config.bos_token_id or 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_states = model.model(tokens, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden_states[is_learned])
    return F.cross_entropy(logits.float(), targets[is_learned], reduction=reduction)


def make_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, slower for queries and keys; AdamW for the embedding and the norms.

    At the full rate Muon grew queries and keys until attention was one-hot in every layer but the first (entropy 0.3
    nats after 1,000 steps), and the model never learned to look a name up.
    """
    matrices = {name: weight for name, weight in model.model.layers.named_parameters() if weight.ndim == 2}
    lookups = [weight for name, weight in matrices.items() if name.endswith(("q_proj.weight", "k_proj.weight"))]
    inside = {id(weight) for weight in matrices.values()}
    training = recipe.training
    muon = partial(torch.optim.Muon, weight_decay=0.0, adjust_lr_fn="original")
    slow = {id(weight) for weight in lookups}
    return [
        muon([weight for weight in matrices.values() if id(weight) not in slow], lr=training.muon_lr),
        muon(lookups, lr=training.query_key_lr),
        torch.optim.AdamW(
            [weight for weight in model.parameters() if id(weight) not in inside],
            lr=training.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True,
        ),
    ]  # fmt: skip


def schedule(step: int, steps: int, *, warmup: float, decay: float) -> float:
    """The share of the learning rate at a step: up, level, and down in a line to 0 (WSD)."""
    return min(1.0, (step + 1) / max(1.0, warmup * steps), (steps - step) / max(1.0, decay * steps))


def initialize(model: LlamaForCausalLM) -> None:
    """Make what the layers add to the residual stream small at first: 1 / sqrt(2 L) of the usual."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * model.config.num_hidden_layers))


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, recipe: Recipe, tokenizer: Tokenizer, mix: dict[str, float], *, rows: int = 16
) -> tuple[float, float]:
    """Nats per token and bits per byte on rows of held-out text, of what the model is to write."""
    corpus = Corpus(mix, seed=recipe.seed, held_out=True)
    nats, tokens_seen, size = 0.0, 0, 0
    for first in range(0, rows, 16):
        tokens, labels = batch(corpus, first, min(16, rows - first), tokenizer, length=recipe.length)
        nats += token_loss(model, tokens, labels, reduction="sum").item()
        learned = [row[row != IGNORED].tolist() for row in labels[:, 1:]]
        tokens_seen += sum(map(len, learned))
        size += sum(len(text.encode()) for text in tokenizer.decode_batch(learned, skip_special_tokens=True))
    return nats / tokens_seen, nats / math.log(2) / size


def held_out(model: LlamaForCausalLM, recipe: Recipe, tokenizer: Tokenizer) -> dict[str, float]:
    """What the log says of held-out text: the loss of the mix, the bits per byte of two kinds."""
    return {
        "held_out_loss": measure(model, recipe, tokenizer, recipe.mix)[0],
        "story_bits_per_byte": measure(model, recipe, tokenizer, {"story": 1.0})[1],
        "docstring_bits_per_byte": measure(model, recipe, tokenizer, {"docstring": 1.0})[1],
    }


class Run:
    """A run's state: the model, its optimizers, the steps done; saved to and restored from one file."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.tokenizer = prepare_tokenizer(recipe)
        self.model = LlamaForCausalLM(recipe.config(self.tokenizer).replace(dtype="float32"))
        initialize(self.model)
        self.optimizers = make_optimizers(self.model, recipe)
        self.step, self.seconds = 0, 0.0
        self._path = recipe.run / "checkpoint.pt"
        if self._path.exists():
            self._restore()

    def save(self) -> None:
        """Replace the checkpoint in one step."""
        state = {"model": self.model.state_dict(), "step": self.step, "seconds": self.seconds}
        fresh = self._path.with_suffix(".new")
        torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}, fresh)
        fresh.replace(self._path)

    def _restore(self) -> None:
        state = torch.load(self._path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step, self.seconds = state["step"], state["seconds"]


def train(run: Run) -> Iterator[dict[str, float]]:
    """Take the steps that are left; yields what is to be logged, with held-out figures now and then."""
    recipe, training, steps = run.recipe, run.recipe.training, run.recipe.steps
    rates = (training.muon_lr, training.query_key_lr, training.adamw_lr)
    started = time.perf_counter() - run.seconds
    while run.step < steps:
        share = schedule(run.step, steps, warmup=training.warmup, decay=training.decay)
        for optimizer, rate in zip(run.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
        corpus = Corpus(recipe.mix_at(run.step), seed=recipe.seed)
        first = run.step * training.rows
        loss = token_loss(run.model, *batch(corpus, first, training.rows, run.tokenizer, length=recipe.length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), training.clip)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.seconds = time.perf_counter() - started
        tokens = run.step * training.rows * recipe.length
        line = {
            "step": run.step,
            "tokens": tokens,
            "seconds": round(run.seconds, 1),
            "lr": round(share, 4),
            "loss": loss.item(),
        }
        if run.step % training.evaluate_every == 0 or run.step == steps:
            line |= held_out(run.model, recipe, run.tokenizer)
        if run.step % training.checkpoint_every == 0 or run.step == steps:
            run.save()
        yield line


def main() -> None:
    """Train, log every step to the run's folder, and write the finished model."""
    parser = argparse.ArgumentParser(description="Train cria from its recipe; resumes by itself.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--tokens", type=int, help="a budget other than the recipe's")
    arguments = parser.parse_args()
    run = Run(read_recipe(arguments.recipe, tokens=arguments.tokens))
    with (run.recipe.run / "log.jsonl").open("a", encoding="utf-8") as log:
        for line in train(run):
            print(json.dumps(line), file=log, flush=True)
    export(run.model, run.tokenizer, run.recipe)


if __name__ == "__main__":
    main()
