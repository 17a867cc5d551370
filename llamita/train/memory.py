"""The memory of a run before it is allocated: a step on fake tensors, which have shapes and no memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llamita.adapters.lora import add_lora
from llamita.config import LlamaConfig
from llamita.data.loader import Batch
from llamita.errors import UnsupportedError
from llamita.model.llama import LlamaForCausalLM
from llamita.train import optim, savings
from llamita.train.live_tensors import LiveTensors
from llamita.train.loop import autocast
from llamita.train.method import METHODS
from llamita.train.optimizer_in_backward import GradientsInBackward
from llamita.train.recipe import Recipe
from llamita.train.tasks import TOKEN_TASKS

MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """Bytes of tensors in a training step.

    weights, gradients, optimizer: its state, with fp32 copies of weights where there are any. layers: what each layer
    keeps for the backward pass. around: what is kept of embedding, mask, rotation and last norm. loss: what the loss
    needs on top: a chunk of logits, and gradients of head and hidden states. peak: the most of a step at once.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    layers: tuple[int, ...]
    around: int
    loss: int
    peak: int

    @property
    def parts(self) -> dict[str, int]:
        """What the peak is made of, by what it is called; not all of it is there at once."""
        each = f"{max(self.layers) / MIB:,.1f} each"
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.optimizer,
            f"activations of {len(self.layers)} layers, {each}": sum(self.layers),
            "activations of embedding, mask and last norm": self.around,
            "logits of a chunk, and the loss's gradients": self.loss,
        }


def estimate(config: LlamaConfig, recipe: Recipe, *, device: torch.device | str = "cpu") -> Estimate:
    """The memory of a model of `config` trained by a recipe whose task and precision are decided; all tokens learned.

    Raises UnsupportedError for a task or a method whose steps have shapes that only data gives.
    """
    check_known(recipe)
    from torch._subclasses.fake_tensor import FakeTensorMode  # here, as it loads torch's compiler

    live = Shapes()
    with FakeTensorMode(allow_non_fake_inputs=True), live, torch.device(device):
        return _FakeSteps(config, recipe, live).run()


def check_known(recipe: Recipe) -> None:
    """Raise UnsupportedError for a task or a method whose steps have shapes that only data gives."""
    if recipe.task not in TOKEN_TASKS or METHODS[recipe.method].is_quantized:
        raise UnsupportedError(
            f"--dry-run knows the steps of {' and '.join(TOKEN_TASKS)} by full, lora or dora, not of {recipe.task} by "
            f"{recipe.method}: leave it out"
        )


class _FakeSteps:
    """Two steps on fake tensors: the first makes the optimizer's state, the second shows the peak."""

    def __init__(self, config: LlamaConfig, recipe: Recipe, live: LiveTensors) -> None:
        self.recipe, self.live = recipe, live
        self.model = LlamaForCausalLM(config).train()
        if METHODS[recipe.method].is_adapter:
            add_lora(self.model, recipe.lora)
        savings.prepare(self.model, recipe)
        self.weights = live.now
        self.optimizers = savings.optimizers(self.model, recipe)
        self.rows = min(recipe.rows, recipe.micro_rows)
        self.micro_batches = min(2, -(-recipe.rows // self.rows))

    def run(self) -> Estimate:
        """Take the steps."""
        self.step()
        optimizer = self.live.now - self.weights
        self.live.forget_peak()
        layers, around, loss, gradients = self.step()
        count = sum(weight.numel() for weight in self.model.parameters())
        return Estimate(count, self.weights, gradients, optimizer, layers, around, loss, self.live.peak)

    def step(self) -> tuple[tuple[int, ...], int, int, int]:
        """A step of up to two micro-batches: bytes of layers, around them and for the loss, and of all gradients."""
        before, peak = self.live.now, self.live.peak
        found: list[tuple[tuple[int, ...], int, int]] = []
        with self._marked() as at:
            for _ in range(self.micro_batches):
                at.clear()
                loss = self.loss()
                *states, held, most = at
                layers = tuple(after - first for first, after in pairwise(states))
                found.append((layers, held - before - sum(layers), self.live.peak - held))
                self.live.peak = max(peak, most, self.live.peak)
                self.backward(loss)
                del loss
                peak = self.live.peak
        gradients = sum(w.grad.nbytes for w in self.model.parameters() if w.grad is not None)
        optim.step(self.optimizers)
        return *found[0], gradients or max(w.nbytes for w in self.model.parameters() if w.requires_grad)

    @contextmanager
    def _marked(self) -> Iterator[list[int]]:
        """The bytes before the first layer of a forward pass, after each, and at its end; last the most until then.

        What follows is the loss: the peak begins again there.
        """
        base, at = self.model.model, list[int]()

        def mark(*_: Any) -> None:
            at.append(self.live.now)

        def mark_end(*_: Any) -> None:
            self.live.peak, most = self.live.now, self.live.peak
            at.extend((self.live.now, most))

        handles = [layer.register_forward_hook(mark) for layer in base.layers]
        handles += [base.layers[0].register_forward_pre_hook(mark), base.register_forward_hook(mark_end)]
        try:
            yield at
        finally:
            for handle in handles:
                handle.remove()

    def loss(self) -> Tensor:
        """The loss () of a micro-batch of packed rows, by the recipe's own task."""
        batch = Batch(*(torch.zeros(self.rows, self.recipe.length, dtype=torch.long) for _ in range(3)))
        with autocast(self.recipe.precision, batch.inputs.device):
            return self.recipe.training_task().loss(self.model, batch)

    def backward(self, loss: Tensor) -> None:
        """The backward pass, with the optimizer in it where the recipe says so."""
        if self.recipe.optimizer_step == "in-backward":
            GradientsInBackward(list(self.model.parameters()), self.optimizers).backward(loss)
        else:
            loss.backward()


class Shapes(LiveTensors):
    """Counts fake tensors, whose numbers nobody knows: one that Python asks for is 1 (int64: 0), and a mask has all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0 if args[0].dtype is torch.long else 1.0  # a number of a micro-batch: there is a first one
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is torch.ops.aten.index.Tensor and args[1][0].dtype is torch.bool:
            rows = args[0].flatten(0, args[1][0].ndim - 1)
            return self.__torch_dispatch__(func, types, (rows, [torch.arange(len(rows))]))
        return super().__torch_dispatch__(func, types, args, kwargs)


# What the command line would be given -> the recipe with that saving, or None where it has it or cannot have it.
SAVINGS: Mapping[str, Callable[[Recipe], Recipe | None]] = {
    "--recompute full": lambda recipe: _changed(recipe, recompute="full"),
    "--micro-rows 1": lambda recipe: _changed(recipe, micro_rows=1) if recipe.rows > 1 else None,
    "--optimizer-step in-backward --clip 0": lambda recipe: (
        _changed(recipe, optimizer_step="in-backward", clip=0.0) if recipe.rows <= recipe.micro_rows else None
    ),
    "--weights bf16": lambda recipe: _changed(recipe, weights="bf16"),
    "--optimizer adamw8bit": lambda recipe: _changed(recipe, optimizer="adamw8bit"),
    "--optimizer adafactor": lambda recipe: _changed(recipe, optimizer="adafactor"),
    "--precision bf16": lambda recipe: _changed(recipe, precision="bf16") if recipe.weights == "fp32" else None,
}


def savings_of(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe with each of SAVINGS that it does not have yet, alone."""
    recipes = {name: change(recipe) for name, change in SAVINGS.items()}
    return {name: one for name, one in recipes.items() if one is not None}


def with_savings(config: LlamaConfig, recipe: Recipe) -> dict[str, Estimate]:
    """The estimate of a recipe with each of SAVINGS that it does not have yet, alone."""
    return {name: estimate(config, one) for name, one in savings_of(recipe).items()}


def _changed(recipe: Recipe, **changes: str | float | int) -> Recipe | None:
    changed = replace(recipe, **changes)  # type: ignore[arg-type]
    return None if changed == recipe else changed
