"""llamita quantize: store a model in fewer bits, and measure the cost."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llamita.checkpoint.gguf_names import is_gguf
from llamita.cli import arguments, errors, model, terminal
from llamita.cli.show import size
from llamita.errors import NotFoundError, UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from llamita.checkpoint.load import Loaded
    from llamita.quant.report import Cost, LayerCost

NAME = "quantize"
HELP = "store a model in fewer bits, and measure the cost"
EXAMPLES = """\
  llamita quantize --to all
  llamita quantize --to q4_k_m --report
  llamita quantize path/to/model model-q4_k_m.gguf q4_k_m
"""
ALL, DEFAULT = "all", "q4_k_m"
MAX_LENGTH = 512  # tokens of a document of the text
TOKENS = 20_000  # of the text that is measured on, if --tokens is not given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: model, format, output."""
    arguments.add_model(parser, is_positional=True)
    parser.add_argument(
        "output",
        nargs="?",
        default=argparse.SUPPRESS,
        help="the GGUF file to write; none: only measure",
    )
    parser.add_argument("to", nargs="?", default=argparse.SUPPRESS, metavar="format", help="the same as --to")
    parser.add_argument(
        "--to", metavar="FORMATS", help=f"q8_0, q6_k, q5_k_m, q4_k_m, q4_0, ...; several, or all (default: {DEFAULT})"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the model to this GGUF file")
    parser.add_argument("--force", action="store_true", help="replace an existing file, even the model itself")
    parser.add_argument("--report", action="store_true", help="list every weight with its errors")
    parser.add_argument("--text", metavar="FILE", help="measure on this text instead of cria's")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"measure on N tokens of the text, 0: do not measure (default: {TOKENS}, or 0 if a file is written "
        "without --report and --text)",
    )
    parser.add_argument("--json", action="store_true", help="print the cost as a JSON list")


def run(args: argparse.Namespace) -> int:
    """Quantize, print the cost, and write the file."""
    model.wait_asleep()
    names, output = _wanted(args)
    text = _text(args.text) if _tokens(args, output) else ""
    costs = {}
    from llamita.checkpoint.gguf_save import known_format, save_gguf
    from llamita.checkpoint.target import checked_target

    path = None
    if output is not None:  # checked before the work starts: GGUF lacks some formats
        known_format(names[0])
        path = checked_target(output, args.model, force=args.force)
    for name in names:
        costs[name], loaded = _quantized(args, name, text, _tokens(args, output))
        if path is not None:
            with terminal.waiting(f"writing {path}", is_quiet=args.quiet):
                save_gguf(loaded.model, loaded.tokenizer, path)
            if not args.quiet:
                terminal.note(f"wrote {path}, {size(path.stat().st_size)}")
    if args.json:
        print(json.dumps([_facts(name, cost) for name, cost in costs.items()], indent=2))
    elif not args.quiet:
        _print(costs, lists_weights=args.report)
    return 0


def _wanted(args: argparse.Namespace) -> tuple[list[str], str | None]:
    """The formats, and the file to write. The second argument may be a format, as with llama-quantize."""
    from llamita.quant.recipes import RECIPES, SYNONYMS, rules

    to, output = args.to, args.output
    known = (ALL, *RECIPES, *SYNONYMS)
    if args.model is not None and args.model.lower() in known and not named_path(args.model).exists():
        raise UsageError(f"{args.model} is a format, not a model: write llamita quantize MODEL --to {args.model}")
    if to is None and output is not None and output.lower().split(",")[0] in known:
        to, output = output, None
    if output is not None and to is not None and is_gguf(to) and output.lower() in known:
        raise UsageError(f"the file comes before the format: llamita quantize {args.model or 'cria'} {to} {output}")
    to = DEFAULT if to is None else to
    names = list(RECIPES) if to.lower() == ALL else [name.strip().lower() for name in to.split(",")]
    for name in names:
        rules(name)
    if output is not None and len(names) > 1:
        raise UsageError(f"-o writes one model, --to names {len(names)}: choose one")
    if output is not None and output.strip() not in ("", "-") and not is_gguf(output):
        raise UsageError(f"the output {output} does not end in .gguf: name it {_with_suffix(output)}")
    return names, output


def _with_suffix(name: str) -> str:
    return f"{name.rstrip('/') or name}.gguf"


def _tokens(args: argparse.Namespace, output: str | None) -> int:
    """The number of tokens to measure on: 0 if a file is written and neither --report nor --text is given."""
    if args.tokens is not None and args.tokens < 0:
        raise UsageError(f"--tokens is {args.tokens}: give the number of tokens to measure on, or 0")
    is_measured = output is None or args.report or args.text is not None
    return args.tokens if args.tokens is not None else TOKENS if is_measured else 0


def _text(path: str | None) -> str:
    """The text to measure on; form feeds separate its documents."""
    if path is None:
        return (files("llamita") / "cria" / "held_out.txt").read_text(encoding="utf-8")
    try:
        text = named_path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no text {path}: check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder: give a text file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text: convert it first") from None
    if not text.strip():
        raise UsageError(f"{path} has no text to measure on: give another, or --tokens 0 to measure nothing")
    return text


def _quantized(args: argparse.Namespace, name: str, text: str, tokens: int) -> "tuple[Cost, Loaded]":
    with errors.leaving_at_once(), terminal.waiting(f"loading {args.model or 'cria'}", is_quiet=args.quiet):
        model.set_threads(args.threads)
        from llamita.checkpoint.load import load_pretrained

        loaded = load_pretrained(
            args.model,
            dtype=args.dtype,
            device=args.device,
            attn_implementation=args.attn,
            offline=args.offline,
        )
    from llamita.quant.report import documents, quantize_and_count

    cut = documents(
        text,
        encode=partial(loaded.tokenizer.encode, add_special_tokens=False),
        first=loaded.tokenizer.bos_token_id,
        length=min(loaded.model.config.max_position_embeddings, MAX_LENGTH),
        max_tokens=tokens,
    )
    with terminal.waiting(name, is_quiet=args.quiet) as say:

        def progress(stage: str, done: int, total: int) -> None:
            say(f"{name}: {stage}, {done} of {total}")

        return quantize_and_count(loaded.model, name, cut, progress), loaded


def _facts(name: str, cost: "Cost") -> dict[str, Any]:
    return {
        "format": name,
        "bytes_before": cost.bytes_before,
        "bytes_after": cost.bytes_after,
        "perplexity_before": cost.perplexity_before,
        "perplexity_after": cost.perplexity_after,
        "perplexity_change": cost.perplexity_change,
        "weights": [
            {
                "name": layer.names[0],
                "shape": layer.shape,
                "format": layer.format_name,
                "bytes": layer.bytes_after,
                "weight_error": layer.weight_error,
                "output_error": layer.output_error,
            }
            for layer in cost.layers
        ],
    }


def _print(costs: "dict[str, Cost]", *, lists_weights: bool) -> None:
    first = next(iter(costs.values()))
    if first.perplexity_before is None:
        _print_sizes(costs, lists_weights=lists_weights)
        return
    print(f"{'format':<8} {'size':>9} {'share':>6} {'perplexity':>11} {'change':>9}  weights")
    print(f"{'original':<8} {size(first.bytes_before):>9} {'100 %':>6} {_number(first.perplexity_before):>11}")
    for name, cost in costs.items():
        share, change = cost.bytes_after / cost.bytes_before, cost.perplexity_change
        print(
            f"{name:<8} {size(cost.bytes_after):>9} {share:>6.0%} {_number(cost.perplexity_after):>11} "
            f"{'' if change is None else f'{change:+.2%}':>9}  {_counts(cost)}"
        )
        if lists_weights:
            _print_weights(cost.layers)


def _print_sizes(costs: "dict[str, Cost]", *, lists_weights: bool) -> None:
    """Print the table without perplexities."""
    print(f"{'format':<8} {'size':>9} {'share':>6}  weights")
    print(f"{'original':<8} {size(next(iter(costs.values())).bytes_before):>9} {'100 %':>6}")
    for name, cost in costs.items():
        share = cost.bytes_after / cost.bytes_before
        print(f"{name:<8} {size(cost.bytes_after):>9} {share:>6.0%}  {_counts(cost)}")
        if lists_weights:
            _print_weights(cost.layers)


def _counts(cost: "Cost") -> str:
    return ", ".join(f"{count} {name}" for name, (count, _) in sorted(cost.by_format.items()))


def _print_weights(layers: "Sequence[LayerCost]") -> None:
    print(f"\n  {'weight':<34} {'shape':>13}  {'format':<9} {'size':>9} {'error':>9} {'output error':>13}")
    for layer in layers:
        name = ", ".join(name.removeprefix("model.") for name in layer.names)
        shape = "{} x {}".format(*layer.shape)
        output = "" if layer.output_error is None else f"{layer.output_error:.3%}"
        print(
            f"  {name:<34} {shape:>13}  {layer.format_name or 'unchanged':<9} {size(layer.bytes_after):>9} "
            f"{layer.weight_error:>9.3%} {output:>13}"
        )
    print()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
