"""llamita bench: how fast, how large, beside the peers."""

import argparse

NAME = "bench"
HELP = "measure speed and memory beside the peers"
EXAMPLES = """
  llamita bench train --shape 110m --against transformers
  llamita bench train --shape 110m --dtype bfloat16 -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("test", choices=["train"], help="train: forward and backward of one batch")
    parser.add_argument("--shape", default="110m", help="a model shape with random weights: tiny, 110m, 1b")
    parser.add_argument(
        "--against", default="transformers", metavar="SYSTEMS", help="comma-separated; empty: ours alone"
    )
    parser.add_argument("--batch", type=int, default=4, help="rows of the batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns of each system")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each process")
    parser.add_argument("-o", "--output", choices=["md", "csv", "json"], default="md", help="how to print the rows")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from llamita.bench import report, train
    from llamita.bench.peers import named
    from llamita.bench.shapes import shape
    from llamita.errors import UsageError

    shape(args.shape)
    for name in ("batch", "length", "repeats", "threads"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}: it must be at least 1")
    rows = train.measure(
        named(args.against),
        shape_name=args.shape,
        dtype="float32" if args.dtype in (None, "auto") else args.dtype,
        batch=args.batch,
        length=args.length,
        repeats=args.repeats,
        threads=args.threads,
    )
    print(report.FORMATS[args.output](rows, report.machine(args.threads)))
    return 0
