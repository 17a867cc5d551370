"""llamita verify: are these the numbers that transformers computes?"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llamita.cli import errors, model, terminal
from llamita.errors import UsageError
from llamita.files.disk import named_path, read_text

if TYPE_CHECKING:
    from llamita.checkpoint.chain import Edge

T = TypeVar("T")

NAME = "verify"
HELP = "compare with transformers, number by number"
EXAMPLES = """
  llamita verify                     every small random model of the parity grid
  llamita verify --quick             one in 23 of them, in which every kind of model comes up
  llamita verify path/to/checkpoint  this checkpoint, down to the first module that differs
  llamita verify --chain base adapter merged model.gguf    each step from fine-tuning to the GGUF file
  llamita verify --arithmetic        whether this machine's kernels give the bits of every other machine
"""
STRIDE = 23  # of the grid's cases that --quick takes: prime to every axis, so that no value is left out
TIMED = 8  # cases by whose time the rest is estimated: with and without biases, a cache and padding
CHAIN_TOKENS = 512  # of the text that a chain is compared on
RUNS, QUICK_RUNS = 8, 2  # of a checkpoint: float32 and bfloat16, eager and sdpa, whole and padded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    what = "a checkpoint folder, a .gguf file, org/name or cria (default: the grid of small models)"
    parser.add_argument("checkpoint", nargs="?", default=argparse.SUPPRESS, help=what)
    parser.add_argument("-m", "--model", dest="checkpoint", metavar="CHECKPOINT", help="the same, as an option")
    parser.add_argument("--quick", action="store_true", help="a few of the comparisons, in a tenth of the time or less")
    parser.add_argument(
        "--arithmetic", action="store_true", help="compare digests of the CPU kernels' logits with the published ones"
    )
    parser.add_argument(
        "--every-instruction-set", action="store_true",
        help="with --arithmetic: also compile the kernels for each lesser instruction set that this machine runs",
    )  # fmt: skip
    parser.add_argument(
        "--chain", nargs="+", metavar="MODEL",
        help="compare neighbours, such as BASE ADAPTER MERGED GGUF: bit-equal, or the KL divergence (default: none)",
    )  # fmt: skip
    parser.add_argument("--text", metavar="FILE", help="of --chain: compare on this text (default: cria's)")
    parser.add_argument(
        "--max-kl", type=float, metavar="X",
        help="of --chain: accept steps up to X nats per token instead of equal bits (default: equal bits)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="of --chain: print the steps as a JSON list")
    parser.add_argument("--against", choices=["transformers"], default="transformers", help="what to compare with")


def run(args: argparse.Namespace) -> int:
    """Print every comparison and its largest difference; returns 1 if a number that must be equal is not."""
    model.wait_asleep()
    with errors.leaving_at_once(), terminal.waiting("loading torch", is_quiet=args.quiet):
        model.set_threads(args.threads)
    if args.every_instruction_set and not args.arithmetic:
        raise UsageError("--every-instruction-set belongs to --arithmetic: give both")
    _check_chain(args)
    if args.arithmetic:
        if args.checkpoint is not None:
            raise UsageError("--arithmetic has models of its own: give no checkpoint")
        return _arithmetic(args)
    if args.chain is not None:
        return _chain(args)
    if args.checkpoint is None:
        return _grid(args)
    from llamita.checkpoint.gguf_names import is_gguf
    from llamita.checkpoint.load import find

    path = find(args.checkpoint, offline=args.offline)
    if not is_gguf(path):
        return _checkpoint(path, args)
    from llamita.checkpoint.convert import convert

    with tempfile.TemporaryDirectory() as folder:  # of the same numbers, which transformers reads
        return _checkpoint(convert(path, folder, format="f32"), args)


def _arithmetic(args: argparse.Namespace) -> int:
    """Print a digest for each format, and for each instruction set one over all of them."""
    from llamita import arithmetic

    if args.every_instruction_set:
        return _every_instruction_set()
    expected, found = arithmetic.expected(), {}
    for name, digest in arithmetic.digests():
        found[name] = digest
        if not args.quiet:
            print(f"{name:<7} {digest}{'' if digest == expected.get(name) else '  differs'}", flush=True)
    differing = sum(digest != expected.get(name) for name, digest in found.items())
    print(f"all     {arithmetic.combined(found)}")
    print(f"{len(found)} formats, {differing} differ from the published digests")
    return 1 if differing else 0


def _every_instruction_set() -> int:
    """Print a digest for each instruction set when it is there: a set takes minutes where its kernels are compiled."""
    import torch

    from llamita import arithmetic

    levels, published = arithmetic.processors(), arithmetic.combined(arithmetic.expected())
    differing = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # a process compiles with one thread
        for level, digest in zip(levels, pool.map(_digest_of, levels), strict=True):
            print(f"{level:<14} {digest}{'' if digest == published else '  differs'}", flush=True)
            differing += digest != published
    print(f"{len(levels)} instruction sets, {differing} differ from the published digest")
    return 1 if differing else 0


def _digest_of(level: str) -> str:
    """The digest over all formats in a process whose kernels are compiled for this instruction set."""
    command = [sys.executable, "-m", "llamita", "verify", "--arithmetic", "--quiet"]
    done = subprocess.run(command, env=os.environ | {"LLAMITA_CPU": level}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("all ")]
    return lines[0].split()[1] if lines else f"failed: {done.stderr.strip().splitlines()[-1:]}"


def _grid(args: argparse.Namespace) -> int:
    from llamita import verify

    every = list(verify.grid())
    cases = every[::STRIDE] if args.quick else every
    if not args.quiet:
        terminal.note(f"({len(cases)} small models{'' if args.quick else f', {len(every[::STRIDE])} with --quick'})")
    found = ((case, verify.difference(case)) for case in cases)
    worst: dict[str, float] = {}
    differing = 0
    for case, gaps in _with_estimate(found, len(cases), warm=1, timed=TIMED + 1, is_quiet=args.quiet):
        for kind, value in gaps.items():
            worst[kind] = max(worst.get(kind, 0.0), value)
        differing += max(gaps.values()) > 0
        if not args.quiet:
            print(f"{case!s:<62} " + "  ".join(f"{kind} {value:g}" for kind, value in gaps.items()), flush=True)
    largest = ", ".join(f"{kind} {value:g}" for kind, value in worst.items())
    print(f"{len(cases)} cases, {differing} differ from transformers; largest differences: {largest}")
    return 1 if differing else 0


def _checkpoint(folder: Path, args: argparse.Namespace) -> int:
    from llamita import verify

    rows = []
    count = QUICK_RUNS if args.quick else RUNS
    if not args.quiet:
        terminal.note(f"({count} runs of the model{'' if args.quick else f', {QUICK_RUNS} with --quick'})")
    found = islice(verify.compare(folder), count)
    for row in _with_estimate(found, count, warm=2, timed=4, is_quiet=args.quiet):  # two runs a loaded model
        rows.append(row)
        if not args.quiet:
            first = "" if row.first is None else f"  first at {row.first}: {row.first_difference:g}"
            print(f"{row.dtype:<9} {row.backend:<6} {row.run:<13} logits {row.difference:g}{first}", flush=True)
    differing = sum(row.difference > 0 for row in rows)
    print(f"{len(rows)} runs, {differing} differ from transformers")
    return 1 if differing else 0


def _check_chain(args: argparse.Namespace) -> None:
    for name in ("text", "max_kl", "json"):
        if getattr(args, name) not in (None, False) and args.chain is None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to --chain: give both")
    if args.chain is not None and (args.checkpoint is not None or args.arithmetic):
        raise UsageError("--chain has models of its own: give nothing else to verify")
    if args.quick and (args.chain is not None or args.arithmetic):
        raise UsageError(f"--quick does nothing with {'--chain' if args.chain else '--arithmetic'}: leave it out")
    if args.max_kl is not None and not 0 <= args.max_kl < math.inf:
        raise UsageError(f"--max-kl is {args.max_kl}: give a number of nats per token, 0 or more")


def _chain(args: argparse.Namespace) -> int:
    """Print a line for each step of a chain; 1 if one that must be equal is not."""
    from llamita.checkpoint.chain import verify_chain

    path = named_path(args.text) if args.text else Path(str(files("llamita"))) / "cria/held_out.txt"
    text, edges, failed = read_text(path), [], 0
    if not text.strip():
        raise UsageError(f"{path} has no text to compare on: give a file that has")
    for edge in verify_chain(args.chain, text, tokens=CHAIN_TOKENS, offline=args.offline):
        edges.append(edge)
        is_far = args.max_kl is not None and edge.action != "fine-tune" and edge.kl > args.max_kl
        is_wrong = is_far or (bool(edge.unequal) and args.max_kl is None)
        failed += is_wrong
        if not args.json:
            print(_shown(edge, "FAILS" if is_wrong else "ok"), flush=True)
    if args.json:
        print(json.dumps([asdict(edge) for edge in edges], indent=2))
    elif not args.quiet:
        print(f"{len(edges)} step{'s' if len(edges) > 1 else ''}, {failed} fail")
    return 1 if failed else 0


def _shown(edge: "Edge", verdict: str) -> str:
    """A step as two lines: whether it holds, and how far the text moves."""
    if edge.unequal:
        more = f" and {len(edge.unequal) - 1} more" if len(edge.unequal) > 1 else ""
        proof = f"must be equal and differ: {edge.unequal[0]}{more}"
    else:
        proof = f"{edge.made} computed again: bit-equal" if edge.made else "training, which is to differ"
    moved = f"KL {edge.kl:.3g} nats per token, same most probable token {edge.agreement:.1%}"
    first = "all outputs bit-equal" if edge.first is None else f"first at {edge.first}: {edge.first_difference:.3g}"
    return f"{verdict:<5} {edge.action}: {edge.source} -> {edge.target}: {proof}\n      {moved}, {first}"


def _with_estimate(found: Iterable[T], count: int, *, warm: int, timed: int, is_quiet: bool) -> Iterator[T]:
    """Yield what is found; after `timed` of them, print on stderr an estimate of how long all take.

    warm: how many of the first are left out of the estimate, as they wait for libraries.
    """
    started = warmed = time.perf_counter()
    for number, one in enumerate(found, 1):
        yield one
        if number == warm:
            warmed = time.perf_counter()
        elif number == timed < count and not is_quiet:
            each = (time.perf_counter() - warmed) / (timed - warm)
            terminal.note(f"({_duration(warmed - started + each * (count - warm))} in all)")


def _duration(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 100 else f"about {max(1, round(seconds))} s"
