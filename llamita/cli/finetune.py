"""`llamita finetune`: adapt a trained model to examples, to preferences or to a reward."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llamita.cli import ranks, terminal, train, train_report
from llamita.cli.finetune_score import Score, askable, count_right, text_of
from llamita.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from llamita.data.cases import Case
    from llamita.tokenizer.protocol import Tokenizer
    from llamita.train.session import Session

NAME = "finetune"
HELP = "adapt a model to examples or preferences, by default with a LoRA adapter"
EXAMPLES = """\
  llamita finetune
  llamita finetune chats.jsonl -m org/name --minutes 20 -o my-adapter
  llamita finetune chats.jsonl --method qlora --rank 8 --targets q_proj,v_proj
  llamita finetune pairs.jsonl --method dpo --loss ipo --beta 0.2
  llamita finetune sums.jsonl --method grpo --reward exact
  llamita finetune --resume -o my-adapter
"""
LOSS = "held-out loss"
# What the settings are where neither an option nor a recipe says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "model": "cria", "method": "lora", "optimizer": "adamw", "minutes": 2.0, "length": 128, "held_out": 0.05,
}  # fmt: skip
# --method -> the settings that it means; some name a task, and then the method too.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "dora"},
    "qlora": {"method": "qlora"},
    "full": {"method": "full"},
    "dpo": {"task": "dpo", "method": "lora"},
    "reward": {"task": "reward", "method": "full"},
    "grpo": {"task": "grpo", "method": "lora", "length": 48, "batch_tokens": 192, "max_tokens": 16},
}
TEXTS: Mapping[str, str] = {
    "data": (
        ".jsonl, .json or .parquet with messages, prompt and completion, or text; pairs for dpo and reward; hf:NAME "
        "for a dataset of Hugging Face (default: a task that cria cannot do)"
    ),
    "model": "adapt this checkpoint (default: cria)",
    "method": "lora, dora, qlora or full; or dpo, reward or grpo, which are tasks too (default: lora)",
    "minutes": "how long, where --steps is not given (default: 2)",
    "length": "tokens of a row (default: 128; grpo 48)",
    "optimizer": "adamw (default), adamw8bit, muon, lion or adafactor",
    "lr": "learning rate (default: by optimizer, method, task and size; adamw's of a 1B model: lora 5e-4, full 5e-5)",
    "held_out": "of the documents to measure on (default: 0.05)",
    "batch_tokens": "tokens of a step (default: 1024; grpo 192)",
    "max_tokens": "of grpo: the most tokens of an answer (default: 16)",
}
# The built-in data of a task, and the settings with which it is learned in a minute or two of two cores.
PRACTICE: Mapping[str, Mapping[str, Any]] = {
    "auto": {"data": ("built-in:swap",), "steps": 80},
    "dpo": {"data": ("built-in:swap-pairs",), "steps": 40},
    "reward": {"data": ("built-in:swap-pairs",), "steps": 40},
    "grpo": {"data": ("built-in:speech",), "steps": 20, "reward": "regex"},
}
# --method -> AdamW's rate with which cria learns the built-in data in so few steps.
PRACTICE_RATES = {"lora": 5e-3, "dora": 5e-3, "qlora": 5e-3, "full": 1e-3, "dpo": 2e-3, "reward": 1e-3, "grpo": 2e-3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to learn from, where it goes, and the settings of a recipe."""
    train.add_arguments(parser, FINETUNE)


def run(args: argparse.Namespace) -> int:
    """Show an example and the score before, train, and show the score after; 130 where a signal ended it early."""
    return train.run(args, FINETUNE)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options do not give; --method is taken out of them, as it may name a task."""
    chosen, args.method = args.method or DEFAULTS["method"], None
    if chosen not in METHODS:
        raise UsageError(f"--method is {terminal.cut(chosen)!r}: use one of {', '.join(METHODS)}")
    settings = {**DEFAULTS, **METHODS[chosen]}
    task = args.task or settings.get("task", "auto")
    if not args.data and args.recipe is None:
        if task not in PRACTICE:
            raise UsageError(f"there is no built-in data for the task {terminal.cut(task)}: give a file")
        settings |= PRACTICE[task]
        if args.model in (None, DEFAULTS["model"]) and args.optimizer in (None, DEFAULTS["optimizer"]):
            settings["lr"] = PRACTICE_RATES[chosen]
    return settings


def _begin(session: "Session", *, is_quiet: bool) -> Score:
    """Show one example as the model reads it, and how well the model does before it is trained."""
    figures = session.measure()
    if is_quiet or ranks.is_other():
        return Score(0, 0, figures)
    show_example(session)
    score = _score(session, session.recipe.model, None, figures)
    terminal.note(f"before: {score}")
    return score


def _end(session: "Session", before: Score, *, is_quiet: bool) -> None:
    """Write the report, and show both scores and how to use the result."""
    from llamita.train.metrics import read_log

    report = train_report.write_report(session, NAME, [])
    if is_quiet:
        print(session.folder)
        return
    last = read_log(session.log_path)[-1]
    figures = {name: value for name, value in (last.figures or {}).items() if name in session.task.figure_names}
    if last.held_out_loss is not None:
        figures = {LOSS: last.held_out_loss, **figures}
    after = _score(session, *session.written, figures)
    terminal.show(f"before: {before}\nafter:  {after}\n")
    terminal.note(f"wrote {report}; use it so:")
    terminal.show(f"{_use(session)}\n")


def _score(
    session: "Session", model: "str | Path | None", adapter: "str | Path | None", figures: dict[str, float]
) -> Score:
    from llamita.loader import load

    asked = _held_out(session) if session.recipe.task == "sft" else []
    if not asked:
        return Score(0, 0, figures)
    with terminal.waiting("asking what was held out"):
        llm = load(model, adapter=adapter, device=session.run.device)
        return Score(count_right(llm, asked, session.tokenizer), len(asked), figures)


def _held_out(session: "Session") -> "list[Case]":
    from llamita.data.cases import cases

    return askable([case for batch in session.measured_batches() for case in cases(batch)])


def _use(session: "Session") -> str:
    """The command that uses what was trained, with a held-out prompt where that is a plain text."""
    if session.task.is_reward:
        return f"llamita.LlamaForSequenceClassification.from_pretrained({str(session.folder)!r})"
    model, adapter = session.written
    also = "" if adapter is None else f" --adapter {adapter}"
    found = _held_out(session)
    prompt = found[0].prompt if found else []
    is_chat = any(one in session.tokenizer.special_ids for one in prompt[1:])
    text = text_of(prompt, session.tokenizer)
    if is_chat or not text or not text.isprintable() or '"' in text:
        return f"llamita chat -m {model}{also}" if is_chat else f"llamita generate -m {model}{also}"
    return f'llamita generate -m {model}{also} "{text}"'


def show_example(session: "Session") -> None:
    """Show one example as the model reads it: what is learned is bright, or in brackets where there are no colours."""
    from llamita.data.cases import cases

    position = session.run.loader.position
    batch = session.run.loader.next(1)
    session.run.loader.position = position
    count = 2 if session.task.unit == "pair" else 1
    if session.task.samples:
        terminal.note("an example, which the model answers itself:")
        length = int((batch.positions[0] == 0).nonzero()[1])
        terminal.show(f"{_spelled(batch.inputs[0, :length].tolist(), session.tokenizer)}\n", sys.stderr)
        return
    terminal.note("an example, of which is learned what is bright:" if _has_color() else "an example, [learned]:")
    for _, case in zip(range(count), cases(batch), strict=False):
        styled = "".join(_styled(case, session.tokenizer))
        terminal.show(f"{styled}\n", sys.stderr, is_styled=True)


def _styled(case: "Case", tokenizer: "Tokenizer") -> Iterator[str]:
    for is_learned, run in groupby(zip(case.ids, case.is_learned, strict=True), key=lambda pair: pair[1]):
        text = _spelled([one for one, _ in run], tokenizer).translate(terminal.CONTROLS)
        if _has_color():
            yield terminal.paint(text, "bold" if is_learned else "dim", sys.stderr)
        else:
            yield f"[{text}]" if is_learned else text


def _spelled(ids: list[int], tokenizer: "Tokenizer") -> str:
    """The text of token ids, with the names of control tokens."""
    groups = groupby(ids, key=lambda one: one in tokenizer.special_ids)
    return "".join(
        "".join(tokenizer.id_to_token(one) or "" for one in some) if is_special else tokenizer.decode(list(some))
        for is_special, some in groups
    )


def _has_color() -> bool:
    return terminal.has_color(sys.stderr)


FINETUNE = train.Verb(NAME, "finetuned", _settings, _begin, _end, TEXTS)
