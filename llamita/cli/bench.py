"""llamita bench: speed and memory, compared with peers and with the limits of the machine."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from llamita import checks
from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.bench.compare import Results, Settings

NAME = "bench"
HELP = "measure speed and memory, compared with peers"
EXAMPLES = """
  llamita bench roofline
  llamita bench decode --shape 1b --formats bf16,q8_0,q4_k --against transformers,llama.cpp
  llamita bench prefill --shape 110m --against openvino --peers-python ~/peers/bin/python
  llamita bench train --shape 110m -o json
"""

TESTS = {
    "roofline": "the limits of this machine: memory bandwidth, matrix products",
    "decode": "tokens per second of generation; without --formats also overhead and speculate",
    "prefill": "tokens per second of reading a prompt",
    "rows": "tokens per second of one pass over 1 to 512 texts, and the share of what memory and products allow",
    "serve": "tokens per second of the engine with 1 to 32 requests at once",
    "fairness": "milliseconds to the first token of short requests, alone and while a long prompt is read",
    "replays": "whether 1,000 answers of a crowded engine are written again from their receipts; always cria",
    "load": "seconds from a file to the first token",
    "memory": "peak memory while loading and generating",
    "quality": "perplexity of a text in each format, with --shape cria",
    "train": "tokens per second, peak memory and losses of training steps, each system in its faster precision",
    "overhead": "the share of a generation step outside the model",
    "speculate": "speculative decoding compared with plain decoding",
}
# Options that only some tests use.
SYSTEMS = ("formats", "against", "peers_python")
GENERATION = ("dtype", "batch", "tokens")
USES = {
    "roofline": ("length",),
    "decode": (*SYSTEMS, *GENERATION, "length", "beside_load"),
    "prefill": (*SYSTEMS, "length"),
    "rows": ("formats",),
    "serve": SYSTEMS,
    "fairness": ("formats",),
    "replays": ("formats",),
    "load": SYSTEMS,
    "memory": (*SYSTEMS, "tokens", "length"),
    "quality": (*SYSTEMS, "length"),
    "train": ("against", "dtype", "batch", "length", "method"),
    "overhead": GENERATION,
    "speculate": GENERATION,
}
PREFILL, DEPTH = 512, 1  # default values of --length
COUNTS = ("batch", "length", "tokens", "repeats", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    tests = "; ".join(f"{name}: {what}" for name, what in TESTS.items())
    parser.add_argument("test", nargs="?", choices=list(TESTS), default="roofline", help=f"{tests} (default: roofline)")
    parser.add_argument("--shape", default="110m", help="a model shape with random weights: 110m, 1b, tiny; or cria")
    parser.add_argument(
        "--formats",
        default=None,
        help="comma-separated (default: bf16): fp32, bf16, fp16, int8, or block formats such as q8_0, q4_0, q4_k; an "
        "unknown name lists them all; not for train, overhead, speculate",
    )
    parser.add_argument(
        "--against",
        default="transformers",
        metavar="SYSTEMS",
        help="comma-separated: transformers, llama.cpp, openvino; empty: llamita alone",
    )
    parser.add_argument(
        "--peers-python", metavar="PATH", help="a Python that has the peers' libraries (default: this one)"
    )
    parser.add_argument(
        "--batch", type=int, default=None, help="rows of the batch (defaults: train 8, overhead 1, speculate 1 and 4)"
    )
    parser.add_argument(
        "-p",
        "--length",
        type=int,
        default=None,
        help="tokens of the prompt (defaults: prefill, quality and train 512, decode 1)",
    )
    parser.add_argument("--method", default="full", help="of train: full, lora or qlora, compared with peft's LoRA")
    parser.add_argument("-n", "--tokens", type=int, default=128, help="tokens to generate")
    parser.add_argument(
        "--beside-load",
        action="store_true",
        help="decode while another process is busy, in turns with one thread",
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of each system; one more is not counted")
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
    checks.threads("--threads", args.threads)
    measured = MEASURES[args.test](args)
    facts = {**report.machine(args.threads), "peers": measured.versions, "limits": measured.facts()}
    print(report.FORMATS[args.output](measured.rows, facts))
    return 0


def _check_use(args: argparse.Namespace) -> None:
    """Raise UsageError for options that the test does not use."""
    from llamita.errors import UsageError

    known = {name for uses in USES.values() for name in uses}
    unused = args.given & known - set(USES[args.test])
    if args.test == "decode" and args.formats is not None:
        unused |= args.given & {"dtype", "batch"}  # used by overhead and speculate, which --formats leaves out
    for name in sorted(unused):
        users = ", ".join(test for test, uses in USES.items() if name in uses)
        raise UsageError(
            f"bench {args.test} does nothing with --{name.replace('_', '-')} here: leave it out, it is for {users}"
        )


def _settings(args: argparse.Namespace) -> "Settings":
    from llamita.bench.compare import Settings
    from llamita.bench.formats import named_formats
    from llamita.bench.systems import named_systems

    return Settings(
        shape=args.shape,
        formats=named_formats(args.formats or "bf16"),
        systems=named_systems(args.against),
        repeats=args.repeats,
        threads=args.threads,
        peers_python=args.peers_python,
        report=(lambda _: None) if args.quiet else terminal.note,
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

    if args.beside_load:
        return decode.measure_under_load(_settings(args), tokens=args.tokens, depth=args.length or DEPTH)
    measured = decode.measure(_settings(args), tokens=args.tokens, depth=args.length or DEPTH)
    if args.formats is None:  # one format was not asked for: measure all of generation
        measured.add(_overhead(args))
        measured.add(_speculate(args))
    return measured


def _prefill(args: argparse.Namespace) -> "Results":
    from llamita.bench import prefill

    return prefill.measure(_settings(args), length=args.length or PREFILL)


def _rows(args: argparse.Namespace) -> "Results":
    from llamita.bench import rows

    return rows.measure(_settings(args))


def _serve(args: argparse.Namespace) -> "Results":
    from llamita.bench import serve, serve_peers

    settings = _settings(args)
    measured = serve.measure(settings)
    if len(settings.systems) > 1:
        measured.add(serve_peers.measure(settings))
    return measured


def _fairness(args: argparse.Namespace) -> "Results":
    from llamita.bench import fairness

    return fairness.measure(_settings(args))


def _replays(args: argparse.Namespace) -> "Results":
    from llamita.bench import replays

    return replays.measure(_settings(args))


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
    from llamita.bench.systems import named_systems

    precisions = {"float32": "fp32", "bfloat16": "bf16"}
    return train.measure(
        named_systems(args.against),
        shape_name=args.shape,
        method=args.method,
        precision=None if args.dtype in (None, "auto") else precisions.get(args.dtype, args.dtype),
        batch=args.batch or 8,
        length=args.length or PREFILL,
        repeats=args.repeats,
        threads=args.threads,
        peers_python=args.peers_python,
    )


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
    "rows": _rows,
    "serve": _serve,
    "fairness": _fairness,
    "replays": _replays,
    "load": _load,
    "memory": _memory,
    "quality": _quality,
    "train": _train,
    "overhead": _overhead,
    "speculate": _speculate,
}
