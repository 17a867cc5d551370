"""`llamita generate`: a text, continued."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, model, stdin, terminal

if TYPE_CHECKING:
    from llamita.llm import LLM, Completion, Stream

NAME = "generate"
HELP = "continue a text, and print the continuation as it is written"
EXAMPLES = """\
  llamita generate "Once upon a time"
  llamita generate "Once upon a time" -n 50 -t 0.7 --seed 1
  echo "The little llama" | llamita generate
  llamita generate -p "A list of animals:" --stop ". " --json
  llamita generate -s "You are a helpful llama." "Where do llamas live?"
"""
FIRST_WORDS = "Once upon a time"  # a prompt for those who give none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, which model, how to write, what to print."""
    what = "the text to continue; text piped in is the prompt, or is put below it"
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, help=what)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the same, as an option")
    arguments.add_model(parser)
    arguments.add_writing(parser)
    parser.add_argument("--json", action="store_true", help="print an object: text, finish_reason, usage, model, seed")


def run(args: argparse.Namespace) -> int:
    """Read the prompt before the model is loaded, then write."""
    prompt = read_prompt(args.prompt)
    llm = model.load(args)
    seed = model.chosen_seed(args)
    started = time.perf_counter()
    stream = _stream(llm, prompt, args, seed)
    if args.json:
        text = "".join(stream)
        told = {"finish_reason": stream.completion.finish_reason, "usage": _usage(stream.completion)}
        print(json.dumps({"text": text, **told, "model": llm.name, "seed": seed}, ensure_ascii=False))
        return 0
    if sys.stdout.isatty() and not args.quiet:
        asked = prompt if args.system is None else f"{prompt}\n"
        sys.stdout.write(terminal.paint(asked.translate(terminal.CONTROLS), "dim", sys.stdout))
    _print(stream)
    if sys.stderr.isatty() and not args.quiet:
        terminal.note(summary(stream.completion, time.perf_counter() - started, seed))
    return 0


def read_prompt(given: str | None) -> str:
    """The prompt given, what is piped in, or one above the other; raises UsageError where that is empty."""
    piped = stdin.read_text() if stdin.is_piped() else None
    if piped and given:
        return stdin.checked(f"{given}\n\n{piped}", "prompt")
    if given is not None:
        return stdin.checked(given, "prompt")
    return FIRST_WORDS if piped is None else stdin.checked(piped, "prompt")


def summary(completion: "Completion", seconds: float, seed: int) -> str:
    """One line on what was written: how much, how fast, why it ended, and how to get it again."""
    count = len(completion.token_ids)
    ended = "at its limit of tokens" if completion.finish_reason == "length" else "by itself"
    return f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} a second; ended {ended}; seed {seed}"


def _stream(llm: "LLM", prompt: str, args: argparse.Namespace, seed: int) -> "Stream":
    options: Any = arguments.writing(args) | {"seed": seed}
    if args.system is None:
        return llm.stream(prompt, **options)
    messages = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    return llm.stream_chat(messages, **options)


def _print(stream: "Stream") -> None:
    """Print the pieces; on a terminal the line is ended, however it ends."""
    piece = ""
    try:
        for piece in stream:
            terminal.show(piece)
    finally:
        if sys.stdout.isatty() and not piece.endswith("\n"):
            terminal.show("\n")


def _usage(completion: "Completion") -> dict[str, int]:
    return asdict(completion.usage) | {"total_tokens": completion.usage.total_tokens}
