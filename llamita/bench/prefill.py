"""Reading a prompt: tokens per second, beside peers and beside the rate of matrix products."""

from pathlib import Path
from time import perf_counter

from llamita.bench import gemm
from llamita.bench.compare import Limit, Measurement, Results, Settings, compare
from llamita.bench.formats import prompt_operations
from llamita.bench.prompts import prompt
from llamita.bench.shapes import shape
from llamita.bench.systems import open_session
from llamita.bench.workers import Run

FLOATS = ("fp32", "bf16")  # what a float model may be multiplied in


def measure(settings: Settings, *, length: int) -> Results:
    """Rows of tokens per second, of a prompt of `length` tokens of which the last one's logits are wanted.

    The limit is what torch.mm gives in fp32 or in bf16, whichever is faster: some machines multiply bf16 slowly. It is
    the same for every format: quantized products may pass it.
    """
    config = shape(settings.shape)
    operations = prompt_operations(config, length) / length
    test = Measurement(
        name=f"pp{length}",  # as llama-bench writes it
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
    """One reading of the prompt from an empty cache; runs in a worker's process."""
    session = open_session(system, shape_name, format, path, threads)
    ids = prompt(shape(shape_name).vocab_size, length)

    def run() -> float:
        start = perf_counter()
        session.read(ids)
        return length / (perf_counter() - start)

    return run
