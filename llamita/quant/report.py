"""What quantizing costs: bytes, errors of every weight and of what it puts out, and perplexity on a text."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.quant.matrix import Matrix
from llamita.quant.recipes import Recipe
from llamita.quant.surgery import Choice, choices, quantize

INPUTS = 256  # rows that are kept of what each layer is given, to compare what it puts out

Documents = Sequence[Sequence[int]]
Told = Callable[[str, int, int], None]  # what is being done, how many of its steps are done, and of how many


def untold(doing: str, done: int, total: int) -> None:
    """Nobody waits for it."""


@dataclass(frozen=True)
class LayerCost:
    """One weight: its format (None: it stayed), bytes, and the relative RMS errors of itself and of its products."""

    names: tuple[str, ...]
    shape: tuple[int, int]
    form: str | None
    bytes_before: int
    bytes_after: int
    weight_error: float = 0.0
    output_error: float | None = None  # None where the text says nothing of it


@dataclass(frozen=True)
class Cost:
    """A whole model, quantized; perplexities are None without a text."""

    layers: list[LayerCost]
    bytes_before: int
    bytes_after: int
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    @property
    def perplexity_change(self) -> float | None:
        """The relative change: 0.01 is 1 % worse."""
        if self.perplexity_before is None or self.perplexity_after is None:
            return None
        return self.perplexity_after / self.perplexity_before - 1

    @property
    def forms(self) -> dict[str, tuple[int, int]]:
        """Format -> (weights in it, their bytes)."""
        found: dict[str, tuple[int, int]] = {}
        for layer in self.layers:
            count, size = found.get(layer.form or "unchanged", (0, 0))
            found[layer.form or "unchanged"] = (count + 1, size + layer.bytes_after)
        return found


@dataclass
class _Notes:
    """What the watcher of a quantization writes down."""

    inputs: Mapping[str, Tensor]
    told: Callable[[int], None]
    errors: dict[str, tuple[float, float | None]] = field(default_factory=dict)

    def __call__(self, choice: Choice, weight: Tensor, packed: Matrix) -> None:
        weight = weight.float()
        kept = [self.inputs[name] for name in choice.names if name in self.inputs]
        output_error = None
        if kept:
            x = torch.cat(kept).float()
            output_error = relative(packed.linear(x), x @ weight.t())
        self.errors[choice.names[0]] = (relative(packed.dequantize(), weight), output_error)
        self.told(len(self.errors))


@torch.no_grad()
def quantize_and_count(model: LlamaForCausalLM, recipe: Recipe, documents: Documents = (), told: Told = untold) -> Cost:
    """Quantize a model in place, and say what that cost; errors of outputs and perplexities are those on documents.

    documents: token ids, each with its first token given and the others foretold. told: hears of every step.
    """
    before = perplexity(model, documents, partial(told, "measuring it as it is")) if documents else None
    total = sum(choice.form is not None for choice in choices(model, recipe))
    notes = _Notes(layer_inputs(model, documents[:16]), lambda done: told("quantizing", done, total))
    size = sum(parameter.nbytes for parameter in model.parameters())
    chosen = quantize(model, recipe, watch=notes)
    layers = [_layer(choice, model, notes) for choice in chosen]
    return Cost(
        layers=layers,
        bytes_before=size,
        bytes_after=size - sum(layer.bytes_before - layer.bytes_after for layer in layers),
        perplexity_before=before,
        perplexity_after=perplexity(model, documents, partial(told, "measuring it")) if documents else None,
    )


def _layer(choice: Choice, model: nn.Module, notes: _Notes) -> LayerCost:
    rows, columns = choice.shape
    before = rows * columns * next(model.parameters()).element_size()
    if choice.form is None:
        return LayerCost(choice.names, choice.shape, None, before, before)
    return LayerCost(
        choice.names, choice.shape, choice.form, before, bytes_of(choice.form, choice.shape),
        *notes.errors[choice.names[0]],
    )  # fmt: skip


def bytes_of(form: str, shape: tuple[int, int]) -> int:
    """The bytes of a weight (N, K) in a format, as a file holds it."""
    rows, columns = shape
    if form not in FORMATS:
        return rows * (columns + 4)  # int8, one fp32 scale a row
    return rows * columns // FORMATS[form].block * FORMATS[form].nbytes


def relative(found: Tensor, exact: Tensor) -> float:
    """The RMS of a difference over the RMS of what is exact; 0 where both are 0."""
    size = exact.norm().item()
    off = (found - exact).norm().item()
    return off / size if size else off and math.inf


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, documents: Documents, told: Callable[[int, int], None] = lambda done, total: None
) -> float:
    """exp of the mean loss of every token but the first of each document, computed one document at a time."""
    loss, count = 0.0, 0
    for number, document in enumerate(documents):
        told(number, len(documents))
        ids = torch.tensor([list(document)], device=model.device)
        if ids.shape[1] < 2:
            continue
        logits = model(ids, use_cache=False).logits[0, :-1].float()
        loss += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(loss / count) if count else math.nan


@torch.no_grad()
def layer_inputs(model: nn.Module, documents: Documents) -> dict[str, Tensor]:
    """What each linear layer is given on the documents: name -> rows (at most INPUTS, K), spread over all tokens."""
    seen: dict[str, list[Tensor]] = {}
    with _watched(model, seen):
        for document in documents:
            model(torch.tensor([list(document)], device=next(model.parameters()).device), use_cache=False)
    kept = {}
    for name, rows in seen.items():
        every = torch.cat(rows)
        kept[name] = every[:: max(1, -(-len(every) // INPUTS))]
    return kept


@contextmanager
def _watched(model: nn.Module, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def watcher(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1])
            seen.setdefault(name, []).append(rows[::4].clone())

        return module.register_forward_pre_hook(note)

    hooks = [watcher(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def documents(
    text: str, *, encode: Callable[[str], Sequence[int]], first: int | None, length: int, most: int | None = None
) -> Documents:
    """A text in token ids, `most` of them in all: form feeds part its documents, and `windows` cuts what is longer."""
    found: list[list[int]] = []
    for document in text.split("\f"):
        ids = encode(document)[:most]
        found += windows(ids, length=length, first=first)
        most = None if most is None else most - len(ids)
    return found


def windows(ids: Sequence[int], *, length: int, first: int | None) -> list[list[int]]:
    """Token ids of a text, cut into documents of at most `length`, each begun with the id `first` if there is one."""
    begin = [] if first is None else [first]
    step = length - len(begin)
    return [[*begin, *ids[at : at + step]] for at in range(0, len(ids), step)]
