"""`llamita tokenize`: the tokens of a text."""

import argparse
import json

from llamita.cli import arguments, model, terminal, tokens
from llamita.cli.generate import FIRST_WORDS, read_prompt

NAME = "tokenize"
HELP = "show the tokens of a text"
EXAMPLES = """\
  llamita tokenize "Once upon a time"
  llamita tokenize --ids "Once upon a time" -m org/name
  llamita tokenize --count < book.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text, whose tokens, and in which form."""
    what = f'the text; text piped in is taken, or put below it (default: "{FIRST_WORDS}")'
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, metavar="text", help=what)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the same, as an option")
    arguments.add_model(parser)
    parser.add_argument("--special", action="store_true", help="read control tokens that the text spells, as <|end|>")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print the ids in one line")
    form.add_argument("--count", action="store_true", help="print the number of tokens alone")
    form.add_argument("--json", action="store_true", help="print an object: ids, tokens")


def run(args: argparse.Namespace) -> int:
    """Read the text, then the tokenizer; the weights stay on the disk."""
    model.look_for_a_name(args.prompt, is_quiet=args.quiet)
    text = read_prompt(args.prompt)
    with terminal.waiting("reading the tokenizer", is_quiet=args.quiet):
        from llamita.checkpoint.auto import AutoTokenizer
        from llamita.tokenizer.token_bytes import TokenTexts

        tokenizer = AutoTokenizer.from_pretrained(args.model or "cria", local_files_only=args.offline)
    ids = tokenizer.encode(text, parse_special=args.special)
    texts = list(map(TokenTexts(tokenizer).of, ids))
    if args.json:
        print(json.dumps({"ids": ids, "tokens": texts}, ensure_ascii=False))
    elif args.count:
        print(len(ids))
    elif args.ids:
        print(*ids)
    else:
        for line in tokens.table([f"{one:>6} {tokens.quoted(said)}" for one, said in zip(ids, texts, strict=True)]):
            print(line)
        if not args.quiet:
            terminal.note(f"{len(ids)} tokens, {len(text)} characters")
    return 0
