"""`llamita show`: a model's card, or this machine's."""

import argparse
import json
import os
import sys
from typing import Any

from llamita.cli import arguments, terminal
from llamita.errors import UsageError

NAME = "show"
HELP = "describe a model without loading it"
EXAMPLES = """\
  llamita show
  llamita show path/to/model
  llamita show model.gguf
  llamita show HuggingFaceTB/SmolLM2-135M --json
  llamita show --adapter finetuned
  llamita show --machine
"""
BAR = 24  # characters of the longest bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and in which form."""
    arguments.add_model(parser, is_positional=True)
    parser.add_argument("--json", action="store_true", help="print the facts as a JSON object")
    parser.add_argument("--machine", action="store_true", help="describe this machine and its kernels instead")


def run(args: argparse.Namespace) -> int:
    """Print the card; what does not fit together is said on stderr."""
    if args.machine:
        return _show_machine(args)
    with terminal.waiting(f"reading {args.model or 'cria'}", is_quiet=args.quiet or args.json):
        from llamita.cli.model_card import facts

        card = facts(args.model, adapter=args.adapter, offline=args.offline)
    if args.json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
    else:
        _print(card["name"], headline(card), sections(card))
    for problem, names in (("are missing", "missing"), ("have another shape than the config says", "misshapen")):
        if found := card["weights"][names]:
            terminal.warn(
                f"{len(found)} weights {problem}, such as {found[0]}: the checkpoint is damaged or incomplete"
            )
    return 0


def _show_machine(args: argparse.Namespace) -> int:
    is_asked_for = "model" in args.given or (args.model and "LLAMITA_MODEL" not in os.environ)
    if is_asked_for:
        raise UsageError(f"--machine describes this machine, not {args.model}: leave one of them out")
    from llamita.cli import machine_card

    card = machine_card.facts()
    if args.json:
        print(json.dumps(card, indent=2, ensure_ascii=False))
    else:
        _print("llamita", f"writes with {card['instruction_set']}", machine_card.sections(card))
    return 0


def _print(title: str, line: str, parts: dict[str, list[tuple[str, str]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column()
    for part, lines in parts.items():
        table.add_row()
        table.add_row("", Text(part, style="bold"))
        for name, value in lines:
            shown = Text(value)
            shown.highlight_regex("[█▏]+", "green")
            table.add_row(name, shown)
    console = Console(highlight=False, soft_wrap=False)
    with console.capture() as printed:  # rich ends the process with 1 where the reader of a pipe has left
        console.print(Text.assemble((title, "bold green"), (f"  {line}", "")))
        console.print(table)
    sys.stdout.write("\n".join(line.rstrip() for line in printed.get().split("\n")))


def headline(card: dict[str, Any]) -> str:
    """The model in one line."""
    weights, positions = card["weights"], card["positions"]
    return (
        f"{rounded(card['parameters']['total'])} parameters, {weights['dtype']}, {size(weights['bytes'])}, "
        f"context {positions['context']:,}"
    )


def sections(card: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The card's lines under their titles."""
    return {
        "shape": _shape(card["shape"]),
        "positions": [(name.replace("_", " "), _plain(value)) for name, value in card["positions"].items() if value],
        "parameters": _bars(card["parameters"]),
        "memory": _memory(card),
        "tokenizer": _tokenizer(card["tokenizer"]),
        **({"adapter": [(n, _plain(v)) for n, v in card["adapter"].items()]} if "adapter" in card else {}),
        "writes by default": [(name.replace("_", " "), _plain(value)) for name, value in card["generation"].items()]
        or [("", "greedily")],
    }


def _shape(shape: dict[str, Any]) -> list[tuple[str, str]]:
    heads = f"{shape['query_heads']} of {shape['head']}"
    shared = shape["query_heads"] // shape["key_value_heads"]
    stored = f"{shape['key_value_heads']}" + (f", each shared by {shared} query heads" if shared > 1 else "")
    tied = ", shared with the head" if shape["tied_embeddings"] else ""
    return [
        ("layers", f"{shape['layers']}"),
        ("hidden", f"{shape['hidden']:,}"),
        ("feed-forward", f"{shape['feed_forward']:,} ({shape['activation']}, gated)"),
        ("query heads", heads),
        ("key/value heads", stored),
        ("vocabulary", f"{shape['vocabulary']:,}{tied}"),
    ]


def _bars(parameters: dict[str, int]) -> list[tuple[str, str]]:
    total = parameters["total"]
    parts = {part: count for part, count in parameters.items() if count and part != "total"}
    longest = max(parts.values())
    lines = [
        (part, f"{'█' * round(BAR * count / longest) or '▏':<{BAR}} {count:>15,} {count / total:6.1%}")
        for part, count in parts.items()
    ]
    return [*lines, ("total", f"{'':<{BAR}} {total:>15,}")]


def _memory(card: dict[str, Any]) -> list[tuple[str, str]]:
    weights, cache = card["weights"], card["cache"]
    files = "1 file" if weights["files"] == 1 else f"{weights['files']} files"
    full = f"{size(cache['bytes_at_full_context'])} at full context"
    return [
        ("on disk", f"{size(weights['bytes'])} in {files}, {weights['tensors']} tensors of {weights['dtype']}"),
        ("cache", f"{size(cache['bytes_per_token'])} a token, {full}"),
    ]


def _tokenizer(tokenizer: dict[str, Any]) -> list[tuple[str, str]]:
    names = {"begins with": tokenizer["bos"], "ends with": ", ".join(tokenizer["eos"]), "pads with": tokenizer["pad"]}
    return [
        ("tokens", f"{tokenizer['size']:,}, of them {tokenizer['special']} special"),
        *((name, value) for name, value in names.items() if value),
        ("chat template", "yes" if tokenizer["chat_template"] else "no"),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} numbers from {min(value)} to {max(value)}" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}" if isinstance(value, float) else str(value)


def rounded(count: int) -> str:
    """A count as people say it: 3.4 M, 8.03 B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)


def size(count: int) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"
