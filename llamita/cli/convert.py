"""`llamita convert`: a model into another kind of file."""

import argparse
import warnings
from pathlib import Path

from llamita.cli import arguments, failure, terminal
from llamita.cli.show import size

NAME = "convert"
HELP = "write a model as a GGUF file or a Hugging Face folder"
EXAMPLES = """\
  llamita convert cria cria.gguf
  llamita convert path/to/model model-q8_0.gguf --to q8_0
  llamita convert model.gguf path/to/folder
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, where it goes, and in which numbers."""
    arguments.add_model(parser, is_positional=True)
    where = "a name that ends in .gguf, or a folder; MODEL.gguf unless given"
    parser.add_argument("output", nargs="?", default=argparse.SUPPRESS, help=where)
    parser.add_argument("-o", "--output", metavar="OUTPUT", help="the same, as an option")
    parser.add_argument("--to", metavar="FORMAT", help="f32, f16, bf16; a .gguf may also be q8_0, q6_k, q4_k_m, ...")


def run(args: argparse.Namespace) -> int:
    """Load, write, and say what was written."""
    warnings.showwarning = terminal.warn
    output = args.output or _beside(args.model)
    form = args.to or args.quantize or (None if args.dtype == "auto" else args.dtype)
    with failure.leaving_at_once(), terminal.waiting("loading torch", is_quiet=args.quiet):
        from llamita.checkpoint.convert import convert
    with terminal.waiting(f"converting {args.model or 'cria'}", is_quiet=args.quiet):
        path = convert(args.model, output, format=form, offline=args.offline)
    if not args.quiet:
        files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
        terminal.note(f"wrote {path}, {size(sum(file.stat().st_size for file in files))}")
    return 0


def _beside(model: str | None) -> str:
    """A name in this folder for a model's other form: x.gguf for x, x for x.gguf."""
    name = Path(model or "cria").name
    return name.removesuffix(".gguf") if name.endswith(".gguf") else f"{name}.gguf"
