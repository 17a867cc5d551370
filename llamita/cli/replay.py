"""llamita replay: write the answer of a receipt again, and say whether it is the same."""

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamita.cli import arguments, model, terminal
from llamita.errors import BrokenFileError, NotFoundError, UsageError

if TYPE_CHECKING:
    from llamita.engine.receipt import Receipt
    from llamita.llm import LLM

NAME = "replay"
HELP = "write the answer of a receipt again, and say whether it is the same"
EXAMPLES = """\
  llamita replay
  llamita replay receipt.json -p "Once upon a time"
  llamita replay answer.json --request request.json
  llamita replay receipt.json -m org/name
  llamita replay answer.json --request request.json -m org/name --threads 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The receipt, the prompt that it is of, and the model."""
    what = (
        "a JSON file: a receipt, an answer of llamita serve with one in it, or what its page saved with Receipt "
        "(default: that of a story of cria's)"
    )
    parser.add_argument("receipt", nargs="?", help=what)
    parser.add_argument("--choice", type=int, default=0, metavar="N", help="which of an answer's texts (default: 0)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-p", "--prompt", metavar="TEXT", help="the text that was continued")
    group.add_argument(
        "--request", metavar="FILE", help="the request as it was sent: JSON with messages or a prompt (text, or ids)"
    )
    arguments.add_model(parser)
    parser.add_argument("--json", action="store_true", help="print an object: is_equal, differences, text")


def run(args: argparse.Namespace) -> int:
    """Replay; 0 where tokens and log-probabilities are the same, 1 and what differs where they are not."""
    values, request = _published(args) if args.receipt is None else _given(args)
    llm = model.load(args)
    from llamita.engine.receipt import Receipt, differences, replay
    from llamita.generation.text_options import TextModel

    receipt = Receipt.from_dict(_receipt(values, args.choice))
    prompt = llm.tokenizer.encode(args.prompt) if request is None else _prompt(llm, request, receipt)
    completion, again = replay(receipt, TextModel(llm.model, llm.tokenizer, adapter=llm.adapter), prompt)
    found = differences(receipt, again)
    is_equal = (receipt.tokens, receipt.logprobs) == (again.tokens, again.logprobs)
    if args.json:
        print(json.dumps({"is_equal": is_equal, "differences": found, "text": completion.text}, ensure_ascii=False))
        return 0 if is_equal else 1
    if args.receipt is None and not args.quiet:
        terminal.show(f"{values['prompt']}{completion.text}\n\n")
    for line in found:
        terminal.warn(line)
    what = "tokens" if receipt.logprobs is None else "tokens and log-probabilities"
    count = len(completion.token_ids)
    print(f"the same {what}: {count} of {count}" if is_equal else f"other {what} than in the receipt")
    return 0 if is_equal else 1


def _given(args: argparse.Namespace) -> tuple[Any, Any]:
    """What holds the receipt, and the request or None. Raises UsageError without a prompt."""
    values = _read(args.receipt)
    if args.prompt is not None:
        return values, None
    if args.request is not None:
        return values, _read(args.request)
    if not isinstance(values, dict) or "request" not in values:  # which a file has that the chat page saved
        raise UsageError("a receipt has no text in it: give the prompt with -p, or what was sent with --request")
    return values, values["request"]


def _published(args: argparse.Namespace) -> tuple[Any, Any]:
    """A receipt that comes with cria, and its prompt. Raises UsageError for options that are of another one."""
    if name := next((name for name in ("prompt", "request", "model", "adapter") if name in args.given), None):
        raise UsageError(f"--{name} is for a receipt of your own: name its file, llamita replay FILE --{name} ...")
    args.model = args.adapter = None
    values = json.loads((files("llamita") / "cria" / "receipt.json").read_text(encoding="utf-8"))
    return values, values


def _read(path: str) -> Any:
    """The JSON in a file."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there: give the path of a JSON file") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder: give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{path} is no JSON: {terminal.cut(str(error))}") from error


def _receipt(values: Any, choice: int) -> Any:
    """A receipt, or that of one of an answer's texts."""
    if not isinstance(values, dict) or not isinstance(receipts := values.get("receipts"), list):
        return values
    if not 0 <= choice < len(receipts):
        raise UsageError(f"--choice is {choice}: the answer has {len(receipts)} texts, the first is 0")
    return receipts[choice]


def _prompt(llm: "LLM", request: Any, receipt: "Receipt") -> list[int]:
    """The token ids of what a request asked, of several prompts those of the receipt. Raises UsageError for none."""
    from llamita.engine.receipt import tokens_digest
    from llamita.server.sent_request import prompts_of

    prompts = prompts_of(llm.tokenizer, request, reads_on=receipt.reads_on)
    return next((ids for ids in prompts if tokens_digest(ids) == receipt.prompt), prompts[0])
