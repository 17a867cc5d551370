"""Training: tokens per second and peak memory of whole steps, each system in its better precision, and equal losses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llamita.bench import gemm
from llamita.bench.compare import LIMIT, Results
from llamita.bench.memory import MIB, peak_resident
from llamita.bench.report import OURS, rows_of
from llamita.bench.shapes import shape
from llamita.bench.systems import versions
from llamita.bench.workers import ProcessPerTurn, Run, in_turn, workers
from llamita.config import LlamaConfig
from llamita.errors import UsageError

# system -> module:function of (config, method) that makes its model with the same random weights, and its loss of
# (inputs, targets), each (B, T); targets are the inputs one later
MODELS: Mapping[str, str] = {
    "llamita": "llamita.bench.trained:trained",
    "transformers": "llamita.bench.peers.trained:trained",
}
METHODS = ("full", "lora", "qlora")
PRECISIONS = ("fp32", "bf16")
RATE, CLIP, BETAS = 3e-4, 1.0, (0.9, 0.95)
CURVE = (50, 2, 48)  # steps, rows and tokens of a row of the loss curves


@dataclass(frozen=True)
class TrainingCase:
    """What a system trains: a shape by a method on batches of `rows` x `length` tokens."""

    system: str
    shape: str
    method: str
    precision: str
    rows: int
    length: int


class Steps:
    """Steps of one system: forward, backward, clipping, fused AdamW; every step reads other tokens, from a seed."""

    def __init__(self, case: TrainingCase) -> None:
        config = shape(case.shape)
        module, _, function = MODELS[case.system].partition(":")
        model, self.loss = getattr(import_module(module), function)(config, case.method)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
        self.batches = batches(config.vocab_size, case.rows, case.length)
        self.tokens, self.precision = case.rows * case.length, case.precision

    def take(self) -> float:
        """Take a step; returns its loss."""
        inputs, targets = next(self.batches)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def speed(self) -> float:
        """Take a step; returns its tokens per second."""
        start = perf_counter()
        self.take()
        return self.tokens / (perf_counter() - start)


def batches(vocab_size: int, rows: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (rows, length) of texts to learn: every second token is a function of the one before it."""
    generator = torch.Generator().manual_seed(0)
    after = torch.randperm(vocab_size, generator=generator)
    while True:
        tokens = torch.randint(0, vocab_size, (rows, length + 1), generator=generator)
        for at in range(1, length + 1, 2):
            tokens[:, at] = after[tokens[:, at - 1]]
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def prepare(case: TrainingCase) -> Run:
    """Prepare steps that return tokens per second. Runs in a worker process."""
    return Steps(case).speed


def prepare_peak(case: TrainingCase) -> Run:
    """Prepare a run of three steps that returns the peak of this process's resident memory, in MiB."""

    def run() -> float:
        steps = Steps(case)
        for _ in range(3):
            steps.take()
        return peak_resident() / MIB

    return run


def prepare_choice(case: TrainingCase) -> Run:
    """Prepare a run that returns how many times as fast bf16 is as fp32: of two steps of each the second."""

    def run() -> float:
        steps, speeds = Steps(case), dict[str, float]()
        for steps.precision in PRECISIONS:
            speeds[steps.precision] = [steps.speed() for _ in range(2)][1]
        return speeds["bf16"] / speeds["fp32"]

    return run


def prepare_curves(one: TrainingCase, other: TrainingCase) -> Run:
    """Prepare a run that returns the largest difference of two systems' losses over the steps of CURVE."""

    def run() -> float:
        curves = []
        for case in (one, other):
            steps = Steps(case)
            curves.append([steps.take() for _ in range(CURVE[0])])
        return max(abs(a - b) for a, b in zip(*curves, strict=True))

    return run


def operations(config: LlamaConfig, method: str, length: int) -> float:
    """The operations of products for one token: 2 a weight in forward, and for each gradient; attention is causal.

    An adapter of frozen weights needs no gradient of these; its own matrices are not counted.
    """
    heads = config.num_attention_heads * config.head_dim
    layer = 2 * config.hidden_size * (heads + config.num_key_value_heads * config.head_dim)
    layer += 3 * config.hidden_size * config.intermediate_size
    weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * heads * length  # 2 products, of half the pairs on average
    return (6 if method == "full" else 4) * weights + 6 * attention


def measure(
    systems: list[str], *, shape_name: str, method: str, precision: str | None, batch: int, length: int,
    repeats: int, threads: int, peers_python: str | None = None,
) -> Results:  # fmt: skip
    """Measure tokens per second in turns, peak memory in new processes, and the largest difference of losses in fp32.

    precision: of all systems; None is the faster one of each, measured first. The first turn is not counted.
    Raises UsageError for a system that cannot train.
    """
    if unable := [system for system in systems if system not in MODELS]:
        raise UsageError(f"bench cannot train with {unable[0]}: use one of {', '.join(MODELS)}")
    if method not in METHODS:
        raise UsageError(f"method is {method!r}: use one of {', '.join(METHODS)}")
    cases = {one: TrainingCase(one, shape_name, method, precision or "fp32", batch, length) for one in systems}
    if precision is None:
        cases = {one: _in_better_precision(case, threads) for one, case in cases.items()}
    measured = Results(versions=versions(systems, peers_python))
    test = f"train {method} {batch}x{length}"
    _add_speeds(measured, cases, test, repeats, threads)
    peaks = {one: [ProcessPerTurn(prepare_peak, (case,), threads).measure("run")] for one, case in cases.items()}
    _add(measured, cases, f"{test} peak memory", "MiB", peaks)
    if method == "full" and len(systems) > 1:
        steps, rows, tokens = CURVE
        short = [TrainingCase(one, shape_name, method, "fp32", rows, tokens) for one in systems[:2]]
        worst = ProcessPerTurn(prepare_curves, tuple(short), threads).measure("run")
        name = f"largest difference of {steps} losses, {systems[1]}"
        measured.rows += rows_of({OURS: [worst]}, test=name, shape=shape_name, format="fp32", unit="nats")
    return measured


def _in_better_precision(case: TrainingCase, threads: int) -> TrainingCase:
    ratio = ProcessPerTurn(prepare_choice, (case,), threads).measure("run")
    return replace(case, precision="bf16" if ratio > 1 else "fp32")


def _add_speeds(measured: Results, cases: Mapping[str, TrainingCase], test: str, repeats: int, threads: int) -> None:
    """Speeds, with the share of the machine's products that they reach: the best rate of fp32 and bf16."""
    (case, *_) = cases.values()
    config = shape(case.shape)
    needed = operations(config, case.method, case.length)
    sizes = gemm.sizes(config, case.rows * case.length)
    arguments: dict[str, tuple[Any, ...]] = {one: (case,) for one, case in cases.items()}
    products = {LIMIT: (list(PRECISIONS), sizes)}
    with workers(prepare, arguments, threads=threads) as ours, workers(gemm.prepare, products, threads=threads) as rate:
        turns = in_turn({**ours, **rate}, repeats)
    rates = turns.pop(LIMIT)
    measured.add_limit("products in fp32 or bf16", "GFLOP/s", [rate / 1e9 for rate in rates])
    shares = {
        one: [needed * speed / rate for speed, rate in zip(speeds, rates, strict=True)] for one, speeds in turns.items()
    }
    _add(measured, cases, test, "tok/s", turns, shares)


def _add(
    measured: Results, cases: Mapping[str, TrainingCase], test: str, unit: str, values: Mapping[str, list[float]],
    shares: Mapping[str, list[float]] | None = None,
) -> None:  # fmt: skip
    """Add a row a system, whose format is its precision."""
    (case, *_) = cases.values()
    rows = rows_of(values, test=test, shape=case.shape, format="", unit=unit, shares=shares)
    measured.rows += [replace(row, format=cases[row.system].precision) for row in rows]
