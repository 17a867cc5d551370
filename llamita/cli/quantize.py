"""llamita quantize: a model in fewer bits, and what that costs."""

import argparse
import json
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, failure, terminal
from llamita.cli.show import size
from llamita.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from llamita.checkpoint.load import Loaded
    from llamita.quant.report import Cost, LayerCost

NAME = "quantize"
HELP = "store a model in fewer bits, and see what that costs"
EXAMPLES = """\
  llamita quantize --to all
  llamita quantize --to q4_k_m --report
  llamita quantize path/to/model --to q4_k_m -o model-q4_k_m.gguf
"""
ALL = "all"
LONGEST = 512  # tokens read at once of the text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, to what, and where it goes."""
    arguments.add_model(parser, is_positional=True)
    parser.add_argument(
        "--to", default="q4_k_m", metavar="FORMATS", help="q8_0, q6_k, q5_k_m, q4_k_m, q4_0, ...; several, or all"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the model there, as a GGUF file")
    parser.add_argument("--report", action="store_true", help="list every weight with its errors")
    parser.add_argument("--text", metavar="FILE", help="measure on this text rather than on one of cria's")
    parser.add_argument(
        "--tokens", type=int, default=20000, metavar="N", help="measure on so many of its tokens, 0: none"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON list")


def run(args: argparse.Namespace) -> int:
    """Quantize, print what it costs, and write the file."""
    from llamita.quant.recipes import RECIPES, rules

    names = list(RECIPES) if args.to == ALL else [name.strip().lower() for name in args.to.split(",")]
    for name in names:
        rules(name)
    if args.output and len(names) > 1:
        raise UsageError(f"-o writes one model, --to names {len(names)}: choose one")
    text = _text(args.text)
    costs = {}
    from llamita.checkpoint.gguf_save import known_format, save_gguf

    for name in names:
        if args.output:
            known_format(name)  # before the work, as GGUF knows not all
        costs[name], loaded = _quantized(args, name, text)
        if args.output:
            with terminal.waiting(f"writing {args.output}", is_quiet=args.quiet):
                path = save_gguf(loaded.model, loaded.tokenizer, args.output)
            terminal.note(f"wrote {path}, {size(path.stat().st_size)}")
    if args.json:
        print(json.dumps([_facts(name, cost) for name, cost in costs.items()], indent=2))
    elif not args.quiet:
        _print(costs, lists_weights=args.report)
    return 0


def _text(path: str | None) -> str:
    """The text to measure on; form feeds part its documents."""
    if path is None:
        return (files("llamita") / "cria" / "held_out.txt").read_text(encoding="utf-8")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no text {path}: check the path") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text: convert it first") from None


def _quantized(args: argparse.Namespace, name: str, text: str) -> "tuple[Cost, Loaded]":
    warnings.showwarning = terminal.warn
    with failure.leaving_at_once(), terminal.waiting(f"loading {args.model or 'cria'}", is_quiet=args.quiet):
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
        length=min(loaded.model.config.max_position_embeddings, LONGEST),
        most=max(0, args.tokens),
    )
    with terminal.waiting(f"quantizing to {name}", is_quiet=args.quiet):
        return quantize_and_count(loaded.model, name, cut), loaded


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
                "format": layer.form,
                "bytes": layer.bytes_after,
                "weight_error": layer.weight_error,
                "output_error": layer.output_error,
            }
            for layer in cost.layers
        ],
    }


def _print(costs: "dict[str, Cost]", *, lists_weights: bool) -> None:
    first = next(iter(costs.values()))
    print(f"{'format':<8} {'size':>9} {'of it':>6} {'perplexity':>11} {'change':>9}  weights")
    print(f"{'as it is':<8} {size(first.bytes_before):>9} {'100 %':>6} {_number(first.perplexity_before):>11}")
    for name, cost in costs.items():
        share, change = cost.bytes_after / cost.bytes_before, cost.perplexity_change
        forms = ", ".join(f"{count} {form}" for form, (count, _) in sorted(cost.forms.items()))
        print(
            f"{name:<8} {size(cost.bytes_after):>9} {share:>6.0%} {_number(cost.perplexity_after):>11} "
            f"{'' if change is None else f'{change:+.2%}':>9}  {forms}"
        )
        if lists_weights:
            _print_weights(cost.layers)


def _print_weights(layers: "Sequence[LayerCost]") -> None:
    print(f"\n  {'weight':<34} {'shape':>13}  {'format':<9} {'size':>9} {'error':>9} {'of output':>10}")
    for layer in layers:
        name = ", ".join(name.removeprefix("model.") for name in layer.names)
        shape = "{} x {}".format(*layer.shape)
        output = "" if layer.output_error is None else f"{layer.output_error:.3%}"
        print(
            f"  {name:<34} {shape:>13}  {layer.form or 'unchanged':<9} {size(layer.bytes_after):>9} "
            f"{layer.weight_error:>9.3%} {output:>10}"
        )
    print()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
