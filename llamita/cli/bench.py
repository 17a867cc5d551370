"""llamita bench: how fast, how large, beside the peers."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamita.bench.report import Row

NAME = "bench"
HELP = "measure speed and memory beside the peers"
EXAMPLES = """
  llamita bench train --shape 110m --against transformers
  llamita bench decode --shape cria --against transformers -o json
"""

TESTS = {
    "train": "forward and backward of one batch",
    "decode": "writing token by token, what of a step is not the model's, and guessing ahead",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("test", choices=list(TESTS), help="; ".join(f"{name}: {what}" for name, what in TESTS.items()))
    parser.add_argument("--shape", default="110m", help="a model shape with random weights: cria, tiny, 110m, 1b")
    parser.add_argument(
        "--against", default="transformers", metavar="SYSTEMS", help="comma-separated; empty: ours alone"
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="rows of the batch (train 4, decode 1, guessing ahead 1 and 4)"
    )
    parser.add_argument("--length", type=int, default=256, help="tokens of a row, read (train)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a row, written (decode)")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns of each system")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each process")
    parser.add_argument("-o", "--output", choices=["md", "csv", "json"], default="md", help="how to print the rows")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from llamita.bench import report
    from llamita.bench.shapes import shape
    from llamita.errors import UsageError

    shape(args.shape)
    for name in ("batch", "length", "tokens", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}: it must be at least 1")
    print(report.FORMATS[args.output](MEASURES[args.test](args), report.machine(args.threads)))
    return 0


def _train(args: argparse.Namespace) -> "list[Row]":
    from llamita.bench import train
    from llamita.bench.peers import named

    dtype = "float32" if args.dtype in (None, "auto") else args.dtype
    return train.measure(
        named(args.against),
        shape_name=args.shape,
        dtype=dtype,
        batch=args.batch or 4,
        length=args.length,
        repeats=args.repeats,
        threads=args.threads,
    )


def _decode(args: argparse.Namespace) -> "list[Row]":
    import torch

    from llamita.bench import decode, speculate
    from llamita.bench.peers import named

    torch.set_num_threads(args.threads)
    systems, dtype = named(args.against), "bfloat16" if args.dtype in (None, "auto") else args.dtype
    common = {"shape_name": args.shape, "dtype": dtype, "tokens": args.tokens, "repeats": args.repeats}
    return [
        *decode.measure(systems, batch=args.batch or 1, threads=args.threads, **common),
        *speculate.measure(batches=(args.batch,) if args.batch else (1, 4), **common),
    ]


MEASURES: "Mapping[str, Callable[[argparse.Namespace], list[Row]]]" = {
    "train": _train,
    "decode": _decode,
}
