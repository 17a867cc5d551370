"""Serve: many requests at once through the engine, compared with what memory and products allow."""

from dataclasses import dataclass
from functools import partial

from llamita.bench import bandwidth, gemm
from llamita.bench.compare import Results, Settings
from llamita.bench.formats import is_quantized, weights
from llamita.bench.models import build
from llamita.bench.ours import engine_of, serve
from llamita.bench.prefill import FLOATS
from llamita.bench.report import OURS, Row, p95, spread
from llamita.bench.shapes import shape
from llamita.bench.workers import InProcess, in_turn
from llamita.bench.workload import COUNTS, Cost, Workload
from llamita.config import LlamaConfig
from llamita.engine.engine import Engine
from llamita.plans.cpu import fuse


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
        with engine_of(fuse(build(settings.shape, format)), max(counts)) as engine:
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
        measured.add_limit("memory read", "GB/s", [value / 1e9 for value in memory])
        measured.add_limit(f"products in {', '.join(kinds)}", "G/s", [value / 1e9 for value in products])
    return measured


def _rows(shape_name: str, format: str, count: int, turns: list[Served], shares: list[float]) -> list[Row]:
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


def _turn(engine: Engine, config: LlamaConfig, count: int, served: list[Served]) -> float:
    """Serve a workload, `count` requests at once; returns the tokens written per second."""
    before, work = engine.stats, Workload.of(count, config, len(served))
    work = work if served else work.beginning()  # the first does not count
    handles, seconds = serve(engine, work)
    after, written = engine.stats, sum(len(handle.result().token_ids) for handle in handles)
    computed = (after.prompt_tokens - after.cached_prompt_tokens) - (before.prompt_tokens - before.cached_prompt_tokens)
    metrics = [handle.metrics for handle in handles]
    first = [one.first_token - one.arrival for one in metrics if one.first_token is not None]
    served.append(Served(written / seconds, first, computed, written))
    return written / seconds
