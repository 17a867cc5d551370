"""`llamita generate`: a text, continued."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, model, stdin, terminal, tokens
from llamita.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from llamita.generation.completion import Completion, Stream
    from llamita.llm import LLM

NAME = "generate"
HELP = "continue a text, and print the continuation as it is written"
EXAMPLES = """\
  llamita generate "Once upon a time"
  llamita generate "Once upon a time" -n 50 -t 0.7 --seed 1
  echo "The little llama" | llamita generate
  llamita generate -p "A list of animals:" --stop ". " --json
  llamita generate "Once upon a time" --show-probs --stats
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
    group = parser.add_argument_group("showing")
    group.add_argument("--json", action="store_true", help="print an object: text, finish_reason, usage, model, seed")
    group.add_argument("--logprobs", type=int, metavar="N", help="in --json: each token's, and the N likeliest there")
    group.add_argument("--show-probs", action="store_true", help="colour each token by its probability on a terminal")
    group.add_argument("--stats", action="store_true", help="tell on stderr how fast it read and wrote")


def run(args: argparse.Namespace) -> int:
    """Read the prompt before the model is loaded, then write."""
    _check(args)
    prompt = read_prompt(args.prompt)
    llm = model.load(args)
    seed = model.chosen_seed(args)
    is_colored = args.show_probs and terminal.has_color(sys.stdout)
    watch = Watch(tokens.Probabilities(args.logprobs or 0) if is_colored or args.logprobs is not None else None)
    stream = _stream(llm, prompt, args, seed, watch)
    if args.json:
        _print_object(stream, llm, seed, watch)
    else:
        _print_text(stream, llm, prompt, args, watch if is_colored else None)
    if args.stats:
        print(watch.stats(stream.completion), file=sys.stderr)
    elif sys.stderr.isatty() and not args.quiet and not args.json:
        terminal.note(summary(stream.completion, watch.seconds, seed))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs is a part of the object that --json prints: add --json, or take --show-probs")
    if args.logprobs is not None and args.logprobs < 0:
        raise UsageError(f"logprobs is {args.logprobs}: give a count of tokens, 0 tells of the written ones alone")
    if args.show_probs and args.json:
        raise UsageError("--show-probs colours a text and --json prints none: take --logprobs with --json")


class Watch:
    """What is noted while a text is written: when its tokens came and, where wanted, how likely they were."""

    def __init__(self, probabilities: tokens.Probabilities | None) -> None:
        self.probabilities = probabilities
        self.started = self.last = time.perf_counter()
        self.first: float | None = None

    def __call__(self, logits: "Tensor", chosen: "Tensor") -> None:
        if self.probabilities is not None:
            self.probabilities(logits, chosen)
        self.last = time.perf_counter()
        self.first = self.first or self.last

    @property
    def seconds(self) -> float:
        """From the prompt to the last token."""
        return self.last - self.started

    def stats(self, completion: "Completion") -> str:
        """Three lines on the prompt, the first token and the others."""
        first = (self.first or self.last) - self.started
        read, written = completion.usage.prompt_tokens, completion.usage.completion_tokens
        return "\n".join(
            (
                f"prompt: {read} tokens, {_rate(read, first)}",
                f"first token: after {first * 1000:.1f} ms",
                f"written: {written} tokens, {_rate(written - 1, self.seconds - first)} after the first",
            )
        )


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.1f} tokens/s" if count > 0 and seconds > 0 else "- tokens/s"


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
    return f"{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):.0f} a second; ended {ended}; seed {seed}"


def _stream(llm: "LLM", prompt: str, args: argparse.Namespace, seed: int, watch: Watch) -> "Stream":
    options: Any = arguments.writing(args) | {"seed": seed, "watch": watch}
    if args.system is None:
        return llm.stream(prompt, **options)
    messages = [{"role": "system", "content": args.system}, {"role": "user", "content": prompt}]
    return llm.stream_chat(messages, **options)


def _print_object(stream: "Stream", llm: "LLM", seed: int, watch: Watch) -> None:
    """Print what was written and what is to be told of it as one line of JSON."""
    text = "".join(stream)
    usage = asdict(stream.completion.usage) | {"total_tokens": stream.completion.usage.total_tokens}
    told: dict[str, Any] = {"text": text, "finish_reason": stream.completion.finish_reason, "usage": usage}
    if watch.probabilities is not None:
        spelling = tokens.Spelling(llm.tokenizer)
        told["logprobs"] = [spelling.data(likely) for likely in watch.probabilities.tokens]
    print(json.dumps({**told, "model": llm.name, "seed": seed}, ensure_ascii=False))


def _print_text(stream: "Stream", llm: "LLM", prompt: str, args: argparse.Namespace, watch: Watch | None) -> None:
    """Print the pieces as they come, coloured where there is a watch; on a terminal, the prompt goes before them."""
    if sys.stdout.isatty() and not args.quiet:
        asked = prompt if args.system is None else f"{prompt}\n"
        sys.stdout.write(terminal.paint(asked.translate(terminal.CONTROLS), "dim", sys.stdout))
    trail = tokens.Trail(llm.tokenizer, after=stream.completion.prompt_token_ids if args.system is None else ())
    piece = ""
    try:
        for piece in stream:
            if watch is None or watch.probabilities is None:
                terminal.show(piece)
                continue
            for run, probability in trail.runs(piece, watch.probabilities.tokens):
                sys.stdout.write(tokens.paint(run, probability, sys.stdout))
            sys.stdout.flush()
    finally:
        if sys.stdout.isatty() and not piece.endswith("\n"):  # however it ends
            terminal.show("\n")
    if watch is not None and not args.quiet:
        print(tokens.legend(), file=sys.stderr)
