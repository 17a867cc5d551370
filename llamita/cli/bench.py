"""llamita bench: how fast, how large, beside the peers and beside what the machine can do."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.bench.compare import Results, Settings

NAME = "bench"
HELP = "measure speed and memory beside the peers"
EXAMPLES = """
  llamita bench roofline
  llamita bench decode --shape 1b --formats bf16,q8_0,q4_k --against transformers,llama.cpp
  llamita bench prefill --shape 110m --against openvino --peers-python ~/peers/bin/python
  llamita bench train --shape 110m -o json
"""

TESTS = {
    "roofline": "what this machine can do: bytes read, matrix products",
    "decode": "writing token by token; without --formats overhead and speculate too",
    "prefill": "reading a prompt",
    "load": "from a file to the first token",
    "memory": "the most held while loading and writing",
    "quality": "perplexity of a text in each format, with --shape cria",
    "train": "forward and backward of one batch",
    "overhead": "what of a step of writing is not the model's",
    "speculate": "guessing ahead beside plain writing",
}
# What a test does something with, of what is not for all of them.
SYSTEMS = ("formats", "against", "peers_python")
DRAWN = ("dtype", "batch", "tokens")
USES = {
    "roofline": ("length",),
    "decode": (*SYSTEMS, *DRAWN, "length"),
    "prefill": (*SYSTEMS, "length"),
    "load": SYSTEMS,
    "memory": (*SYSTEMS, "tokens", "length"),
    "quality": (*SYSTEMS, "length"),
    "train": ("against", "dtype", "batch", "length"),
    "overhead": DRAWN,
    "speculate": DRAWN,
}
PREFILL, TRAINED, DEPTH = 512, 256, 1  # tokens read unless --length says otherwise
COUNTS = ("batch", "length", "tokens", "repeats", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    tests = "; ".join(f"{name}: {what}" for name, what in TESTS.items())
    parser.add_argument("test", nargs="?", choices=list(TESTS), default="roofline", help=f"{tests} (default: roofline)")
    parser.add_argument("--shape", default="110m", help="a model shape with random weights: 110m, 1b, tiny; or cria")
    parser.add_argument(
        "--formats",
        default=None,
        help="comma-separated (default: bf16): fp32, bf16, fp16, int8, or blocks such as q8_0, q4_0, q4_k; a wrong "
        "one lists them all (not train and below)",
    )
    parser.add_argument(
        "--against",
        default="transformers",
        metavar="SYSTEMS",
        help="comma-separated: transformers, llama.cpp, openvino; empty: ours alone",
    )
    parser.add_argument(
        "--peers-python", metavar="PATH", help="a Python that has the peers' libraries (default: this one)"
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="rows of the batch (defaults: train 4, overhead 1, speculate 1 and 4)"
    )
    parser.add_argument(
        "-p",
        "--length",
        type=int,
        default=None,
        help="tokens read (defaults: prefill and quality 512, train 256, decode 1)",
    )
    parser.add_argument("-n", "--tokens", type=int, default=128, help="tokens written")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns of each system")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("-o", "--output", choices=["md", "csv", "json"], default="md", help="how to print the rows")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from llamita.bench import report
    from llamita.bench.shapes import shape
    from llamita.errors import UsageError

    shape(args.shape)
    _check_use(args)
    for name in COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}: it must be at least 1")
    measured = MEASURES[args.test](args)
    facts = {**report.machine(args.threads), "peers": measured.versions, "limits": measured.facts()}
    print(report.FORMATS[args.output](measured.rows, facts))
    return 0


def _check_use(args: argparse.Namespace) -> None:
    """Raise UsageError for options that the test does nothing with."""
    from llamita.errors import UsageError

    theirs = {name for uses in USES.values() for name in uses}
    unused = args.given & theirs - set(USES[args.test])
    if args.test == "decode" and args.formats is not None:
        unused |= args.given & {"dtype", "batch"}  # of overhead and speculate, which are left out then
    for name in sorted(unused):
        users = ", ".join(test for test, uses in USES.items() if name in uses)
        raise UsageError(
            f"bench {args.test} does nothing with --{name.replace('_', '-')} here: leave it out, it is for {users}"
        )


def _settings(args: argparse.Namespace) -> "Settings":
    from llamita.bench.compare import Settings
    from llamita.bench.formats import chosen
    from llamita.bench.systems import named

    return Settings(
        shape=args.shape,
        formats=chosen(args.formats or "bf16"),
        systems=named(args.against),
        repeats=args.repeats,
        threads=args.threads,
        peers_python=args.peers_python,
        say=(lambda _: None) if args.quiet else terminal.note,
    )


def _roofline(args: argparse.Namespace) -> "Results":
    from llamita.bench import roofline
    from llamita.bench.compare import Results

    return Results(
        rows=roofline.measure(
            shape_name=args.shape, length=args.length or PREFILL, repeats=args.repeats, threads=args.threads
        )
    )


def _decode(args: argparse.Namespace) -> "Results":
    from llamita.bench import decode

    measured = decode.measure(_settings(args), tokens=args.tokens, depth=args.length or DEPTH)
    if args.formats is None:  # nothing was singled out: what else there is to say of writing
        measured.add(_overhead(args))
        measured.add(_speculate(args))
    return measured


def _prefill(args: argparse.Namespace) -> "Results":
    from llamita.bench import prefill

    return prefill.measure(_settings(args), length=args.length or PREFILL)


def _load(args: argparse.Namespace) -> "Results":
    from llamita.bench import load

    return load.measure(_settings(args))


def _memory(args: argparse.Namespace) -> "Results":
    from llamita.bench import memory

    return memory.measure(_settings(args), tokens=args.tokens, depth=args.length or DEPTH)


def _quality(args: argparse.Namespace) -> "Results":
    from llamita.bench import quality

    return quality.measure(_settings(args), length=args.length or PREFILL)


def _train(args: argparse.Namespace) -> "Results":
    from llamita.bench import train
    from llamita.bench.compare import Results
    from llamita.bench.systems import named

    rows = train.measure(
        named(args.against),
        shape_name=args.shape,
        dtype=_dtype(args, "float32"),
        batch=args.batch or 4,
        length=args.length or TRAINED,
        repeats=args.repeats,
        threads=args.threads,
    )
    return Results(rows=rows)


def _overhead(args: argparse.Namespace) -> "Results":
    import torch

    from llamita.bench import overhead
    from llamita.bench.compare import Results

    torch.set_num_threads(args.threads)
    rows = overhead.measure(
        shape_name=args.shape,
        dtype=_dtype(args, "bfloat16"),
        batch=args.batch or 1,
        tokens=args.tokens,
        repeats=args.repeats,
    )
    return Results(rows=rows)


def _speculate(args: argparse.Namespace) -> "Results":
    import torch

    from llamita.bench import speculate
    from llamita.bench.compare import Results

    torch.set_num_threads(args.threads)
    rows = speculate.measure(
        shape_name=args.shape,
        dtype=_dtype(args, "bfloat16"),
        batches=(args.batch,) if args.batch else (1, 4),
        tokens=args.tokens,
        repeats=args.repeats,
    )
    return Results(rows=rows)


def _dtype(args: argparse.Namespace, usual: str) -> str:
    return usual if args.dtype in (None, "auto") else args.dtype


MEASURES: "Mapping[str, Callable[[argparse.Namespace], Results]]" = {
    "roofline": _roofline,
    "decode": _decode,
    "prefill": _prefill,
    "load": _load,
    "memory": _memory,
    "quality": _quality,
    "train": _train,
    "overhead": _overhead,
    "speculate": _speculate,
}
