"""Rows: the speed of one pass over different numbers of texts, compared with what memory and products allow."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch

from llamita.bench import bandwidth, gemm
from llamita.bench.compare import Results, Settings
from llamita.bench.formats import is_quantized, weights
from llamita.bench.models import build
from llamita.bench.prefill import FLOATS
from llamita.bench.report import OURS, Row, spread
from llamita.bench.shapes import shape
from llamita.bench.workers import InProcess, in_turn
from llamita.cache.growing import GrowingCache
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse

COUNTS = (1, 2, 4, 8, 16, 32, 64, 512)
READ = 8  # tokens of each text before the pass
PASSES = 3  # of a turn, of which the fastest counts


def measure(settings: Settings, *, counts: tuple[int, ...] = COUNTS, nbytes: int = bandwidth.NBYTES) -> Results:
    """Measure a pass of one token for each of some texts, with the logits of all, in tokens per second.

    The limit of a pass is the longer of two times: to read all weights once at the memory's bandwidth, and to multiply
    them at the fastest rate of torch's products in fp32 or bf16, for quantized weights in int8 too (which a processor
    without VNNI does slowly). It runs in this process, in turns with both; a turn counts the fastest of three passes.
    """
    bandwidth.use_threads(settings.threads)
    config, measured = shape(settings.shape), Results()
    for format in settings.formats:
        settings.report(f"rows {settings.shape} {format}")
        model = fuse(build(settings.shape, format))
        kinds = tuple(gemm.PRODUCTS) if is_quantized(format) else FLOATS
        limits = {
            "memory": InProcess(bandwidth.prepare(nbytes)),
            "products": InProcess(gemm.prepare(kinds, gemm.sizes(config, 64))),
        }
        passes = {str(count): InProcess(partial(_speed, _pass(model, count), count)) for count in counts}
        turns = in_turn({**limits, **passes}, settings.repeats)
        memory, products = turns.pop("memory"), turns.pop("products")
        read = weights(config, format).read
        operations = 2.0 * weights(config, "fp32").read / 4  # of a token
        for name, speeds in turns.items():
            count = int(name)
            seconds = [max(read / one, count * operations / other) for one, other in zip(memory, products, strict=True)]
            shares = [speed * limit / count for speed, limit in zip(speeds, seconds, strict=True)]
            measured.rows.append(
                Row(
                    test=f"{count} rows", shape=settings.shape, format=format, system=OURS, **spread(speeds),
                    unit="tok/s", of_limit=spread(shares)["median"],
                )
            )  # fmt: skip
        measured.add_limit("memory read", "GB/s", [value / 1e9 for value in memory])
        measured.add_limit(f"products in {', '.join(kinds)}", "G/s", [value / 1e9 for value in products])
    return measured


def _pass(model: LlamaForCausalLM, count: int) -> Callable[[], float]:
    """A pass of one new token for each of `count` texts; returns its seconds."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(model.config.vocab_size, (count, READ + 1), generator=generator)
    cache = GrowingCache()

    @torch.inference_mode()
    def run() -> float:
        if cache.length == 0:
            model(ids[:, :READ], past_key_values=cache, logits_to_keep=1)
        start = perf_counter()
        model(ids[:, READ:], past_key_values=cache)
        seconds = perf_counter() - start
        cache.crop(READ)
        return seconds

    return run


def _speed(run: Callable[[], float], count: int) -> float:
    return count / min(run() for _ in range(PASSES))
