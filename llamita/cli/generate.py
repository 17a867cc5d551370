"""`llamita generate`: continue a text."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, model, ranks, stdin, structured_flags, terminal, tokens
from llamita.cli.screen import Screen
from llamita.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.generation.completion import Completion, Stream
    from llamita.generation.run import Acceptance
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
  llamita generate -p "Is a llama a bird? " --choice Yes,No
  llamita generate -s "You write JSON." "Mia is 28 years old." --json-schema person.json
  llamita generate -m cria --adapter finetuned "Once upon a time"
  llamita generate -m org/name "Once upon a time" --threads 4
  torchrun --nproc-per-node 2 -m llamita generate --tp 2 "Once upon a time"
"""
FIRST_WORDS = "Once upon a time"  # the prompt where none is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, which model, how to write, what to print."""
    what = "the text to continue; text piped in is the prompt, or is put below it (default: a story's first words)"
    parser.add_argument("prompt", nargs="?", default=argparse.SUPPRESS, help=what)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the same, as an option")
    arguments.add_model(parser)
    parser.add_argument(
        "--draft-model", metavar="MODEL", help="a smaller one of the same tokens, to draft for it (default: none)"
    )
    arguments.add_writing(parser).add_argument(
        "--heal", action="store_true", help="let the answer finish the word that the prompt breaks off in"
    )
    structured_flags.add_arguments(parser)
    group = parser.add_argument_group("showing")
    group.add_argument("--json", action="store_true", help="print an object: text, finish_reason, usage, model, seed")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="in --json: each token's, and the N most probable (default: none)"
    )
    group.add_argument(
        "--prompt-logprobs", type=int, metavar="N", help="the same of the prompt's tokens, in --json (default: none)"
    )
    group.add_argument("--show-probs", action="store_true", help="colour each token by its probability on a terminal")
    group.add_argument("--stats", action="store_true", help="tell on stderr how fast it read and wrote")


def run(args: argparse.Namespace) -> int:
    """Read the prompt before the model is loaded, then write."""
    _check(args)
    with ranks.sharing(args.device, args.tp) as mesh:
        return _run(args, mesh)


def _run(args: argparse.Namespace, mesh: "DeviceMesh | None") -> int:
    """The same steps in every process of a mesh, of which the first reads and prints."""

    def asked() -> tuple[str, int]:
        model.look_for_a_name(args.prompt, is_quiet=args.quiet)
        return read_prompt(args.prompt), model.chosen_seed(args)

    prompt, seed = ranks.from_first(asked, mesh)
    options = arguments.writing(args) | structured_flags.options(args)
    llm = model.load(args, mesh)
    is_colored = args.show_probs and terminal.has_color(sys.stdout)
    noted = 0 if is_colored and args.logprobs is None else args.logprobs
    clock = Clock()
    options |= {"seed": seed, "logprobs": noted, "prompt_logprobs": args.prompt_logprobs, "heal": args.heal}
    stream = _stream(llm, prompt, args.system, options)
    if args.json:
        _print_object(stream, llm, seed, clock)
    else:
        _print_text(stream, llm, prompt, args, clock, is_colored=is_colored)
    _report(stream.completion, seed, args, clock)
    return 0


def _report(completion: "Completion", seed: int, args: argparse.Namespace, clock: "Clock") -> None:
    """Print on stderr what the answer itself does not say: a cut form, statistics, the seed."""
    if structured_flags.options(args) and completion.finish_reason == "length" and not args.quiet:
        terminal.warn("the answer was cut at its limit of tokens, before its form was complete: give more with -n")
    if args.stats:
        print(clock.stats(completion), file=sys.stderr)
        if completion.acceptance is not None:
            print(_drafts(completion.acceptance), file=sys.stderr)
    elif sys.stderr.isatty() and not args.quiet and not args.json:
        terminal.note(summary(completion, clock.seconds, seed))


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if args.logprobs is not None and not args.json:
        raise UsageError("--logprobs is a part of the object that --json prints: add --json, or take --show-probs")
    if args.prompt_logprobs is not None and not args.json:
        raise UsageError("--prompt-logprobs is a part of the object that --json prints: add --json")
    if args.show_probs and args.json:
        raise UsageError("--show-probs colours a text and --json prints none: take --logprobs with --json")
    if args.show_probs and args.heal:
        raise UsageError("--show-probs colours whole tokens and --heal hides a part of them: leave one of them out")
    if args.heal and args.system is not None:
        raise UsageError("--heal is for a text that goes on, and -s makes it a conversation: leave one of them out")
    if args.draft_model is not None and (args.logprobs is not None or args.show_probs):
        raise UsageError("--draft-model writes several tokens at once: leave out --logprobs and --show-probs")


class Clock:
    """When pieces of a text came."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.first: float | None = None

    def timed(self, stream: "Stream") -> Iterator[str]:
        """The pieces, as they come."""
        for piece in stream:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            yield piece
        self.last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """From the prompt to the last token."""
        return self.last - self.started

    def stats(self, completion: "Completion") -> str:
        """Three lines on the prompt, the first piece of text and the rest."""
        first = (self.first or self.last) - self.started
        read, written = completion.usage.prompt_tokens, completion.usage.completion_tokens
        return "\n".join(
            (
                f"prompt: {read} tokens, {_rate(read, first)}",
                f"first token: after {first * 1000:.1f} ms",
                f"written: {written} tokens, {_rate(written - 1, self.seconds - first)} after the first",
            )
        )


def _drafts(acceptance: "Acceptance") -> str:
    """A line on how well speculative decoding went, and the rule that limits it."""
    if acceptance.limit == 0:
        return "drafted: nothing, as drafts would cost a pass over this many texts more time than they save"
    rule = f", at most {acceptance.limit} drafts a pass" if acceptance.limit < sys.maxsize else ""
    return (
        f"drafted: {acceptance.drafted} tokens, {acceptance.accepted} accepted ({acceptance.rate:.0%}), "
        f"{acceptance.tokens_per_pass:.2f} tokens a pass{rule}"
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


def _stream(llm: "LLM", prompt: str, system: str | None, options: dict[str, Any]) -> "Stream":
    if system is None:
        return llm.stream(prompt, **options)
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return llm.stream_chat(messages, **options)


def _print_object(stream: "Stream", llm: "LLM", seed: int, clock: Clock) -> None:
    """Print the text and its details as one line of JSON."""
    text = "".join(clock.timed(stream))
    completion = stream.completion
    usage = asdict(completion.usage) | {"total_tokens": completion.usage.total_tokens}
    fields: dict[str, Any] = {"text": text, "finish_reason": completion.finish_reason, "usage": usage}
    if completion.logprobs is not None:
        fields["logprobs"] = [tokens.data(entry) for entry in completion.logprobs]
    if completion.prompt_logprobs is not None:
        fields["prompt_logprobs"] = [tokens.data(entry) for entry in completion.prompt_logprobs]
    print(json.dumps({**fields, "model": llm.name, "seed": seed}, ensure_ascii=False))


def _print_text(
    stream: "Stream", llm: "LLM", prompt: str, args: argparse.Namespace, clock: Clock, *, is_colored: bool
) -> None:
    """Print the pieces as they come, in the colours of their probabilities; on a terminal, the prompt before them."""
    screen = Screen(sys.stdout)
    if sys.stdout.isatty() and not args.quiet:
        screen.write(prompt if args.system is None else f"{prompt}\n", "dim")
    aligner = tokens.TokenAligner(
        llm.tokenizer, after=stream.completion.prompt_token_ids if args.system is None else ()
    )
    try:
        for piece in clock.timed(stream):
            if not is_colored:
                screen.write(piece)
                continue
            for run, probability in aligner.runs(piece, stream.completion.logprobs or []):
                screen.write(run, tokens.style_of(probability))
    finally:
        screen.end_line()  # however it ends
    if is_colored and not args.quiet:
        tokens.show_legend()
