"""llamita verify: are these the numbers that transformers computes?"""

import argparse
import tempfile
from pathlib import Path

NAME = "verify"
HELP = "compare with transformers, number by number"
EXAMPLES = """
  llamita verify                     every small random model of the parity grid
  llamita verify path/to/checkpoint  this checkpoint, down to the first module that differs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("checkpoint", nargs="?", help="a checkpoint folder, a repository id or cria; none: the grid")
    parser.add_argument(
        "--against", choices=["transformers"], default="transformers", help="the library to compare with"
    )


def run(args: argparse.Namespace) -> int:
    """Print every comparison and its largest difference; returns 1 if a number that must be equal is not."""
    if args.checkpoint is None:
        return _grid()
    from llamita.checkpoint.gguf_names import is_gguf
    from llamita.checkpoint.load import find

    path = find(args.checkpoint, offline=args.offline)
    if not is_gguf(path):
        return _checkpoint(path)
    from llamita.checkpoint.convert import convert

    with tempfile.TemporaryDirectory() as folder:  # of the same numbers, which transformers reads
        return _checkpoint(convert(path, folder, format="f32"))


def _grid() -> int:
    from llamita import verify

    worst: dict[str, float] = {}
    differing = 0
    for case in verify.grid():
        found = verify.difference(case)
        for kind, value in found.items():
            worst[kind] = max(worst.get(kind, 0.0), value)
        differing += max(found.values()) > 0
        print(f"{case!s:<62} " + "  ".join(f"{kind} {value:g}" for kind, value in found.items()), flush=True)
    total = sum(1 for _ in verify.grid())
    largest = ", ".join(f"{kind} {value:g}" for kind, value in worst.items())
    print(f"{total} cases, {differing} differ from transformers; largest differences: {largest}")
    return 1 if differing else 0


def _checkpoint(folder: Path) -> int:
    from llamita import verify

    rows = []
    for row in verify.compare(folder):
        rows.append(row)
        first = "" if row.first is None else f"  first at {row.first}: {row.first_difference:g}"
        print(f"{row.dtype:<9} {row.backend:<6} {row.run:<13} logits {row.difference:g}{first}", flush=True)
    differing = sum(row.difference > 0 for row in rows)
    print(f"{len(rows)} runs, {differing} differ from transformers")
    return 1 if differing else 0
