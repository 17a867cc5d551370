"""Serve: many requests at once through the engine, compared with what memory and products allow."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from time import perf_counter

from llamita.bench import bandwidth, gemm
from llamita.bench.compare import Results, Settings
from llamita.bench.formats import is_quantized, weights
from llamita.bench.models import build
from llamita.bench.prefill import FLOATS
from llamita.bench.report import OURS, Row, spread
from llamita.bench.shapes import shape
from llamita.bench.workers import InProcess, in_turn
from llamita.checkpoint.load import load_pretrained
from llamita.config import LlamaConfig
from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.generation.text_options import TextModel
from llamita.plans.cpu import fuse

COUNTS = (1, 4, 8, 16, 32)
ROUNDS = 2  # requests of a turn for each that runs at once
PROMPTS, ANSWERS = (16, 192), (24, 96)  # tokens, least and most
SHARED = 64  # tokens that every other prompt begins with


@dataclass(frozen=True)
class Workload:
    """Requests: prompts and the tokens to write after each; `at_once` of them run together."""

    at_once: int
    prompts: list[list[int]]
    answers: list[int]

    @classmethod
    def of(cls, at_once: int, config: LlamaConfig, seed: int) -> "Workload":
        """Requests of mixed lengths, every other one with the same first tokens; the same for the same seed."""
        dice = random.Random(f"{at_once} {seed}")
        count = max(2, ROUNDS * at_once)
        texts = [dice.choices(range(config.vocab_size), k=dice.randint(*PROMPTS)) for _ in range(count)]
        shared = dice.choices(range(config.vocab_size), k=SHARED)
        prompts = [shared + text if number % 2 else text for number, text in enumerate(texts)]
        return cls(at_once, prompts, [dice.randint(*ANSWERS) for _ in range(count)])


@dataclass(frozen=True)
class Cost:
    """What the weights of a model cost: bytes that a step reads, and operations of a token."""

    read: float
    operations: float

    def seconds(self, at_once: int, *, computed: int, written: int, memory: float, rate: float) -> float:
        """The least time for the tokens computed of prompts and written: each step reads the weights once."""
        return max(written / at_once * self.read / memory, (computed + written) * self.operations / rate)


@dataclass
class Served:
    """What a turn measured: tokens a second, the time to the first token of each request, and what was computed."""

    speed: float
    first_tokens: list[float]
    computed: int
    written: int


def measure(settings: Settings, *, counts: tuple[int, ...] = COUNTS, nbytes: int = bandwidth.NBYTES) -> Results:
    """Measure tokens written per second by the engine, with 1 to 32 requests at once, greedy, of mixed lengths.

    The limit is the longer of two times: to read all weights in each step, and to multiply all tokens, those of prompts
    that are not cached too, at the fastest rate of torch's products. A turn begins with an empty cache.
    """
    bandwidth.use_threads(settings.threads)
    config, measured = shape(settings.shape), Results()
    for format in settings.formats:
        settings.report(f"serve {settings.shape} {format}")
        kinds = tuple(gemm.PRODUCTS) if is_quantized(format) else FLOATS
        cost = Cost(weights(config, format).read, 2.0 * weights(config, "fp32").read / 4)
        with _engine(settings.shape, format) as engine:
            served: dict[int, list[Served]] = {count: [] for count in counts}
            runs = {str(count): InProcess(partial(_turn, engine, config, count, served[count])) for count in counts}
            limits = {
                "memory": InProcess(bandwidth.prepare(nbytes)),
                "products": InProcess(gemm.prepare(kinds, gemm.sizes(config, 64))),
            }
            turns = in_turn({**limits, **runs}, settings.repeats)
        memory, products = turns.pop("memory"), turns.pop("products")
        for count in counts:
            turn = served[count][-len(memory) :]  # the first does not count
            shares = [
                one.speed / one.written
                * cost.seconds(count, computed=one.computed, written=one.written, memory=read, rate=rate)
                for one, read, rate in zip(turn, memory, products, strict=True)
            ]  # fmt: skip
            measured.rows += _rows(settings.shape, format, count, turn, shares)
        _add_limit(measured, "memory read", "GB/s", [value / 1e9 for value in memory])
        _add_limit(measured, f"products in {', '.join(kinds)}", "G/s", [value / 1e9 for value in products])
    return measured


def _rows(shape_name: str, format: str, count: int, turns: list[Served], shares: list[float]) -> list[Row]:
    speeds, late = [one.speed for one in turns], [1000 * _percentile(one.first_tokens, 95) for one in turns]
    speed = Row(
        test=f"{count} at once", shape=shape_name, format=format, system=OURS, **spread(speeds), unit="tok/s",
        of_limit=spread(shares)["median"],
    )  # fmt: skip
    first = Row(
        test=f"{count} at once, first token p95", shape=shape_name, format=format, system=OURS, **spread(late),
        unit="ms",
    )  # fmt: skip
    return [speed, first]


@contextmanager
def _engine(shape_name: str, format: str) -> Iterator[Engine]:
    """An engine of a model with random weights; the embedded model's tokenizer stands for the missing one."""
    model = fuse(build(shape_name, format))
    texts = TextModel(model, load_pretrained().tokenizer)
    with Engine(texts, EngineLimits(max_num_seqs=max(COUNTS), max_model_len=1024)) as engine:
        yield engine


def _turn(engine: Engine, config: LlamaConfig, count: int, served: list[Served]) -> float:
    """Serve a workload, `count` requests at once; returns the tokens written per second."""
    work = Workload.of(count, config, len(served))
    engine.call(engine.forget).result()
    before = engine.stats
    start = perf_counter()
    handles = [
        engine.submit(prompt, max_tokens=answer, temperature=0.0)
        for prompt, answer in zip(work.prompts[:count], work.answers, strict=False)
    ]
    for number, (prompt, answer) in enumerate(zip(work.prompts[count:], work.answers[count:], strict=True)):
        handles[number].result()  # another one begins when the oldest ends
        handles.append(engine.submit(prompt, max_tokens=answer, temperature=0.0))
    written = sum(len(handle.result().token_ids) for handle in handles)
    seconds, after = perf_counter() - start, engine.stats
    computed = (after.prompt_tokens - after.cached_prompt_tokens) - (before.prompt_tokens - before.cached_prompt_tokens)
    metrics = [handle.metrics for handle in handles]
    first = [one.first_token - one.arrival for one in metrics if one.first_token is not None]
    served.append(Served(written / seconds, first, computed, written))
    return written / seconds


def _percentile(values: list[float], percent: int) -> float:
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def _add_limit(measured: Results, name: str, unit: str, values: list[float]) -> None:
    measured.limits.setdefault(name, []).extend(values)
    measured.units[name] = unit
