"""The cost of quantizing: bytes, the error of each weight and of its outputs, and perplexity on a text."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from llamita.kernels.blocks import FORMATS
from llamita.model.likelihood import nats, perplexity
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.matrix import QuantizedMatrix
from llamita.quant.recipes import Recipe
from llamita.quant.surgery import QuantizationChoice, choices, quantize

MAX_INPUTS = 256  # recorded rows of each layer's input, on which the outputs are compared

Documents = Sequence[Sequence[int]]
Progress = Callable[[str, int, int], None]  # gets the name of a stage, its finished steps, and all its steps


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class LayerCost:
    """The cost of one weight: its format (None: unchanged), bytes, and the relative RMS errors of weight and output."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    format_name: str | None
    bytes_before: int
    bytes_after: int
    weight_error: float = 0.0
    output_error: float | None = None  # None if the documents never reach the layer


@dataclass(frozen=True)
class Cost:
    """The cost for a whole model. Perplexities are None without documents."""

    layers: list[LayerCost]
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    @property
    def perplexity_change(self) -> float | None:
        """The relative change: 0.01 means 1 % worse."""
        if self.perplexity_before is None or self.perplexity_after is None:
            return None
        return self.perplexity_after / self.perplexity_before - 1

    @property
    def by_format(self) -> dict[str, tuple[int, int]]:
        """For each format the number of its weights and their bytes."""
        found: dict[str, tuple[int, int]] = {}
        for layer in self.layers:
            count, size = found.get(layer.format_name or "unchanged", (0, 0))
            found[layer.format_name or "unchanged"] = (count + 1, size + layer.bytes_after)
        return found


@dataclass
class _ErrorRecorder:
    """Records the errors of each weight while a model is quantized."""

    inputs: Mapping[str, Tensor]
    progress: Callable[[int], None]
    errors: dict[str, tuple[float, float | None]] = field(default_factory=dict)

    def __call__(self, choice: QuantizationChoice, weight: Tensor, matrix: QuantizedMatrix) -> None:
        weight = weight.float()
        inputs = [self.inputs[name] for name in choice.names if name in self.inputs]
        output_error = None
        if inputs:
            x = torch.cat(inputs).float()
            output_error = relative_error(matrix.linear(x), x @ weight.t())
        self.errors[choice.names[0]] = (relative_error(matrix.dequantize(), weight), output_error)
        self.progress(len(self.errors))


@torch.no_grad()
def quantize_and_count(
    model: LlamaForCausalLM, recipe: Recipe, documents: Documents = (), progress: Progress = no_progress
) -> Cost:
    """Quantize a model in place and return the cost. Output errors and perplexities are measured on the documents.

    documents: token ids; the first token of each is given, the others are predicted. progress: is called at every step.
    """
    before = perplexity_of(model, documents, partial(progress, "measuring the original model")) if documents else None
    total = sum(choice.format_name is not None for choice in choices(model, recipe))
    recorder = _ErrorRecorder(layer_inputs(model, documents[:16]), lambda done: progress("quantizing", done, total))
    size = sum(parameter.nbytes for parameter in model.parameters())
    chosen = quantize(model, recipe, observer=recorder)
    layers = [_layer(choice, model, recorder) for choice in chosen]
    return Cost(
        layers=layers,
        bytes_before=size,
        bytes_after=size - sum(layer.bytes_before - layer.bytes_after for layer in layers),
        perplexity_before=before,
        perplexity_after=perplexity_of(model, documents, partial(progress, "measuring the quantized model"))
        if documents
        else None,
    )


def _layer(choice: QuantizationChoice, model: nn.Module, recorder: _ErrorRecorder) -> LayerCost:
    rows, columns = choice.shape
    before = rows * columns * next(model.parameters()).element_size()
    if choice.format_name is None:
        return LayerCost(choice.names, choice.shape, None, before, before)
    return LayerCost(
        choice.names, choice.shape, choice.format_name, before, bytes_of(choice.format_name, choice.shape),
        *recorder.errors[choice.names[0]],
    )  # fmt: skip


def bytes_of(format_name: str, shape: tuple[int, int]) -> int:
    """The bytes of a weight (N, K) in a format, as in a file."""
    rows, columns = shape
    if format_name not in FORMATS:
        return rows * (columns + 4)  # int8, one fp32 scale a row
    return rows * columns // FORMATS[format_name].block * FORMATS[format_name].nbytes


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The RMS of the difference divided by the RMS of the exact values; 0 if both are 0."""
    size = exact.norm().item()
    difference = (found - exact).norm().item()
    return difference / size if size else difference and math.inf


@torch.no_grad()
def perplexity_of(
    model: LlamaForCausalLM, documents: Documents, progress: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """Compute exp of the mean loss of all tokens but the first of each document, one document at a time."""
    loss, count = 0.0, 0
    for number, document in enumerate(documents):
        progress(number, len(documents))
        if len(document) > 1:
            ids = torch.tensor([list(document)], device=model.device)
            loss, count = loss + nats(model(ids, use_cache=False).logits[0], document), count + len(document) - 1
    return perplexity(loss, count) if count else math.nan


@torch.no_grad()
def layer_inputs(model: nn.Module, documents: Documents) -> dict[str, Tensor]:
    """Record inputs of each linear layer on the documents: name -> rows (at most MAX_INPUTS, K) from all over them."""
    recorded: dict[str, list[Tensor]] = {}
    with _recording(model, recorded):
        for document in documents:
            model(torch.tensor([list(document)], device=next(model.parameters()).device), use_cache=False)
    inputs = {}
    for name, rows in recorded.items():
        joined = torch.cat(rows)
        inputs[name] = joined[:: max(1, -(-len(joined) // MAX_INPUTS))]
    return inputs


@contextmanager
def _recording(model: nn.Module, recorded: dict[str, list[Tensor]]) -> Iterator[None]:
    def recorder(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            recorded.setdefault(name, []).append(rows[::4].clone())

        return module.register_forward_pre_hook(record)

    hooks = [recorder(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def documents(
    text: str, *, encode: Callable[[str], Sequence[int]], first: int | None, length: int, max_tokens: int | None = None
) -> Documents:
    """Split a text at form feeds and encode it, up to `max_tokens` in all; `windows` cuts long documents."""
    found: list[list[int]] = []
    for document in text.split("\f"):
        ids = encode(document)[:max_tokens]
        found += windows(ids, length=length, first=first)
        max_tokens = None if max_tokens is None else max_tokens - len(ids)
    return found


def windows(ids: Sequence[int], *, length: int, first: int | None) -> list[list[int]]:
    """Cut token ids into documents of at most `length`; each starts with the id `first`, if given."""
    start = [] if first is None else [first]
    step = length - len(start)
    return [[*start, *ids[offset : offset + step]] for offset in range(0, len(ids), step)]
