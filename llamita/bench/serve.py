"""Serve: many requests at once through the engine, compared with what memory and products allow."""

from dataclasses import dataclass
from functools import partial

import torch

from llamita.bench import bandwidth, gemm
from llamita.bench.compare import Results, Settings
from llamita.bench.formats import dtype_of, is_quantized
from llamita.bench.models import build
from llamita.bench.ours import engine_of, serve
from llamita.bench.prefill import FLOATS
from llamita.bench.report import OURS, Row, p95, spread
from llamita.bench.shapes import shape
from llamita.bench.workers import InProcess, in_turn
from llamita.bench.workload import COUNTS, Cost, Need, Workload
from llamita.engine.engine import Engine
from llamita.plans.cpu import fuse

# The dtype that attention's products are in, by the cache's.
MULTIPLIED = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp32"}


@dataclass
class Served:
    """What a turn measured: tokens a second, the time to the first token of each request, and what the texts needed."""

    speed: float
    first_tokens: list[float]
    need: Need


def measure(settings: Settings, *, counts: tuple[int, ...] = COUNTS, nbytes: int = bandwidth.NBYTES) -> Results:
    """Measure tokens written per second by the engine, with 1 to 32 requests at once, greedy, of mixed lengths.

    The limit is `Cost`'s, by memory's rate and the fastest of torch's products. A turn begins with an empty cache.
    """
    bandwidth.use_threads(settings.threads)
    config, measured = shape(settings.shape), Results()
    for format in settings.formats:
        settings.report(f"serve {settings.shape} {format}")
        kinds = tuple(gemm.PRODUCTS) if is_quantized(format) else FLOATS
        cost = Cost.of(config, format)
        attended = MULTIPLIED[dtype_of(format)]
        with engine_of(fuse(build(settings.shape, format)), max(counts)) as engine:
            served: dict[int, list[Served]] = {count: [] for count in counts}
            runs = {
                str(count): InProcess(partial(_turn, engine, settings.shape, count, served[count])) for count in counts
            }
            limits = {
                "memory": InProcess(bandwidth.prepare(nbytes)),
                "products": InProcess(gemm.prepare(kinds, gemm.sizes(config, 64))),
                "attention": InProcess(gemm.prepare([attended], gemm.sizes(config, 64))),
            }
            turns = in_turn({**limits, **runs}, settings.repeats)
        rates = list(zip(*(turns.pop(name) for name in limits), strict=True))
        for count in counts:
            turn = served[count][-len(rates) :]  # the first does not count
            limit = [_limit(cost, one.need, count, *of) for one, of in zip(turn, rates, strict=True)]
            measured.rows += _rows(settings.shape, format, count, turn, limit)
            measured.add_limit(f"{count} at once in {format}", "tok/s", limit)
        memory, products, attention = zip(*rates, strict=True)
        measured.add_limit("memory read", "GB/s", [value / 1e9 for value in memory])
        measured.add_limit(f"products in {', '.join(kinds)}", "G/s", [value / 1e9 for value in products])
        measured.add_limit(f"products in {attended}, as attention's", "G/s", [value / 1e9 for value in attention])
    return measured


def _limit(cost: Cost, need: Need, count: int, memory: float, rate: float, attention_rate: float) -> float:
    """The most tokens that could be written per second."""
    return need.asked / cost.seconds(need, count, memory=memory, rate=rate, attention_rate=attention_rate)


def _rows(shape_name: str, format: str, count: int, turns: list[Served], limits: list[float]) -> list[Row]:
    shares = [one.speed / limit for one, limit in zip(turns, limits, strict=True)]
    speeds, late = [one.speed for one in turns], [1000 * p95(one.first_tokens) for one in turns]
    speed = Row(
        test=f"{count} at once", shape=shape_name, format=format, system=OURS, **spread(speeds), unit="tok/s",
        of_limit=spread(shares)["median"],
    )  # fmt: skip
    first = Row(
        test=f"{count} at once, first token p95", shape=shape_name, format=format, system=OURS, **spread(late),
        unit="ms",
    )  # fmt: skip
    return [speed, first]


def _turn(engine: Engine, shape_name: str, count: int, served: list[Served]) -> float:
    """Serve a workload, `count` requests at once; returns the tokens written per second."""
    work = Workload.of(count, shape_name, len(served))
    work = work if served else work.beginning()  # the first does not count
    handles, seconds = serve(engine, work)
    metrics = [handle.metrics for handle in handles]
    written = [len(handle.result().token_ids) for handle in handles]
    cached = [one.cached_tokens for one in metrics]
    first = [one.first_token - one.arrival for one in metrics if one.first_token is not None]
    need = Need.of(zip(map(len, work.prompts), cached, written, strict=True))
    served.append(Served(need.asked / seconds, first, need))
    return need.asked / seconds
