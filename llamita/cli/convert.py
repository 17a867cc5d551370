"""`llamita convert`: a model into another kind of file."""

import argparse
from pathlib import Path

from llamita.cli import arguments, errors, terminal
from llamita.cli.show import size
from llamita.errors import UsageError

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
    parser.add_argument("--force", action="store_true", help="replace what is there, even the model that is read")


def run(args: argparse.Namespace) -> int:
    """Load, write, and say what was written."""
    output = _default_output(args.model) if args.output is None else args.output
    form = _format(args)
    with errors.leaving_at_once(), terminal.waiting("loading torch", is_quiet=args.quiet):
        from llamita.checkpoint.convert import convert
        from llamita.checkpoint.target import checkpoint_files
    with terminal.waiting(f"converting {args.model or 'cria'}", is_quiet=args.quiet):
        path = convert(args.model, output, format=form, offline=args.offline, force=args.force)
    if not args.quiet:
        files = [path] if path.is_file() else checkpoint_files(path)
        terminal.note(f"wrote {path}, {size(sum(file.stat().st_size for file in files))}")
    return 0


def _format(args: argparse.Namespace) -> str | None:
    """The numbers that are asked for, by --to or by the options that other verbs have for it."""
    ways = {"to": args.to, "quantize": args.quantize, "dtype": None if args.dtype == "auto" else args.dtype}
    given = {name: value for name, value in ways.items() if value is not None}
    name = next(iter(given), None)
    if others := [other for other in given if other != name and other in args.given]:
        raise UsageError(f"--{others[0]} does nothing in convert: --{name} says the format already")
    return None if name is None else given[name]


def _default_output(model: str | None) -> str:
    """A name in this folder for a model's other form: x.gguf for x, x for x.gguf."""
    name = Path(model or "cria").resolve().name if model in (".", "..") else Path(model or "cria").name
    if not name:
        raise UsageError(f"{model!r} gives the output no name: say where it goes with -o")
    return name.removesuffix(".gguf") if name.endswith(".gguf") else f"{name}.gguf"
