"""Prefill: tokens per second, compared with peers and with the speed of matrix products."""

from pathlib import Path
from time import perf_counter

from llamita.bench import gemm
from llamita.bench.compare import Limit, Measurement, Results, Settings, compare
from llamita.bench.formats import prompt_operations
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import open_session
from llamita.bench.workers import Run

FLOATS = ("fp32", "bf16")  # the dtypes of products in a float model


def measure(settings: Settings, *, length: int) -> Results:
    """Measure the prefill of a prompt of `length` tokens, with the last token's logits, in tokens per second.

    The limit is the speed of torch.mm in fp32 or bf16, whichever is faster: some machines multiply bf16 slowly. All
    formats have this limit, so quantized products may exceed it.
    """
    config = shape(settings.shape)
    operations = prompt_operations(config, length) / length
    test = Measurement(
        name=f"pp{length}",  # the name of llama-bench
        unit="tok/s",
        prepare=prepare,
        arguments=(length,),
        share=lambda _, speed, rate: operations * speed / rate,
        limit=Limit(
            name="products in fp32 or bf16",
            unit="GFLOP/s",
            scale=1e9,
            prepare=gemm.prepare,
            arguments=lambda _: (FLOATS, gemm.sizes(config, length)),
        ),
    )
    return compare(test, settings)


def prepare(system: str, shape_name: str, format: str, path: Path | None, threads: int, length: int) -> Run:
    """Prepare one prefill of the prompt from an empty cache. Runs in a worker process."""
    session = open_session(system, shape_name, format, path, threads)
    ids = prompt(shape(shape_name).vocab_size, length)

    def run() -> float:
        start = perf_counter()
        session.prefill(ids)
        return length / (perf_counter() - start)

    return run
