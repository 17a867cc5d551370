"""The settings of a recipe as options of `llamita train` and `llamita finetune`."""

import argparse
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from llamita.errors import UsageError

if TYPE_CHECKING:
    from llamita.train.recipe import Recipe

# Settings of which one decides what the other would.
RIVALS = (("model", "shape"), ("model", "tokenizer"), ("steps", "minutes"))
# Settings that do something in some recipes alone: which, when, and what to give for them. Data may decide the task.
NEEDS: "tuple[tuple[tuple[str, ...], Callable[[Recipe], bool], str], ...]" = (
    (("rank", "alpha", "targets", "rslora", "merge"), lambda recipe: recipe.method != "full", "--method lora"),
    (("base_format",), lambda recipe: recipe.method == "qlora", "--method qlora"),
    (("vocab_size",), lambda recipe: recipe.model is None and recipe.tokenizer == "new", "--tokenizer new"),
    (
        ("loss", "beta", "label_smoothing", "reference_free"),
        lambda recipe: recipe.task in ("auto", "dpo"),
        "--task dpo",
    ),
    (("label_smoothing",), lambda recipe: recipe.loss == "dpo", "--loss dpo"),
    (
        ("reward", "group", "max_tokens", "kl", "rollouts"),
        lambda recipe: recipe.task in ("auto", "grpo"),
        "--task grpo",
    ),
    (("recompute_every",), lambda recipe: recipe.recompute != "none", "--recompute"),
    (("pp_schedule",), lambda recipe: recipe.pp > 1, "--pp"),
    (("pp_stages",), lambda recipe: recipe.pp_schedule == "interleaved", "--pp-schedule interleaved"),
)
# The options that are settings of a recipe: option -> (type, metavar, help)
SETTINGS: dict[str, tuple[type, str, str]] = {
    "model": (str, "MODEL", "start from this checkpoint (default: from random weights, see --shape)"),
    "shape": (str, "NAME", "of a model from random weights: pico, nano (default), micro, cria, mini, small, base"),
    "tokenizer": (str, "MODEL", "whose tokens a model from random weights speaks, or new (default: cria's)"),
    "vocab_size": (int, "N", "tokens of a new tokenizer, which is trained on the data (default: 4096)"),
    "clean": (str, "STEPS", "of quality, lines, duplicates, personal, language=en, ..., with commas (default: none)"),
    "task": (str, "NAME", "pretrain, sft, which learns answers alone, dpo, reward or grpo (default: as the data is)"),
    "loss": (str, "NAME", "of dpo: dpo (default), ipo, orpo or kto"),
    "beta": (float, "X", "of dpo: how strongly the model is held to the reference (default: 0.1)"),
    "label_smoothing": (float, "SHARE", "of pairs that may be the wrong way around (default: 0)"),
    "reward": (str, "NAME", "of grpo: exact (default), regex, json, or module:function of a file here"),
    "group": (int, "N", "of grpo: answers to each prompt (default: 8)"),
    "max_tokens": (int, "N", "of grpo: the most tokens of an answer (default: 32)"),
    "kl": (float, "X", "of grpo: the weight of the divergence from the base of an adapter (default: 0)"),
    "rollouts": (
        str,
        "NAME",
        "of grpo: exact (default: by the trainer's arithmetic) or plain, which is faster",
    ),
    "reference_free": (bool, "", "of dpo: compare with no reference model"),
    "method": (str, "NAME", "full (default), or of an adapter: lora, dora or qlora, with --model"),
    "rank": (int, "N", "of an adapter (default: 16)"),
    "alpha": (float, "X", "an adapter is added times this, divided by the rank (default: 32)"),
    "targets": (str, "NAMES", "layers that get an adapter: names or globs, with commas (default: all-linear)"),
    "rslora": (bool, "", "divide by the root of the rank instead"),
    "base_format": (str, "FORMAT", "of the frozen weights of qlora (default: q8_0)"),
    "merge": (bool, "", "also write the model with the adapter in its weights, to merged in the -o folder"),
    "steps": (int, "N", "optimizer steps (default: as many as --minutes allow, measured at the start)"),
    "minutes": (float, "M", "how long, where --steps is not given (default: 1)"),
    "batch_tokens": (int, "N", "tokens of a step (default: 1024)"),
    "length": (int, "N", "tokens of a row (default: 256)"),
    "micro_rows": (int, "N", "rows in memory at once; gradients are summed over a step (default: 8)"),
    "optimizer": (str, "NAME", "muon (default), adamw, adamw8bit, lion or adafactor"),
    "lr": (
        float,
        "RATE",
        "learning rate (default: 2e-2 for muon, 2e-3 adamw, adamw8bit, 2e-4 lion, 1e-2 adafactor; with --model, by the "
        "optimizer, method, task and model's size)",
    ),
    "rates": (str, "GLOB=SHARE", "of the learning rate, for weights by their names, with commas (default: none)"),
    "weight_decay": (float, "X", "of matrices only (default: 0)"),
    "z_loss": (float, "X", "of pretrain and sft: add this times the square of log Z to each token's loss (default: 0)"),
    "schedule": (str, "NAME", "wsd (default), cosine, linear or constant"),
    "warmup": (float, "SHARE", "of the steps in which the rate rises (default: 0.04)"),
    "clip": (float, "NORM", "the largest norm of a gradient, 0 for no clipping (default: 1)"),
    "precision": (str, "NAME", "fp32 or bf16 products (default: the faster one here, measured at the start)"),
    "threads": (int, "N", "of the CPU (default: 1 or one a core, the faster, measured at the start)"),
    "seed": (int, "N", "of first weights and the order of the rows (default: 0)"),
    "held_out": (float, "SHARE", "of the documents to measure on (default: 0.02)"),
    "evaluate_every": (int, "N", "steps between measurements on held-out rows (default: 100)"),
    "save_every": (int, "N", "steps between checkpoints (default: 200)"),
    "keep_checkpoints": (int, "N", "how many of the newest checkpoints stay (default: 2)"),
    "weights": (str, "NAME", "fp32 (default), or bf16 with fp32 copies that the optimizer moves"),
    "recompute": (str, "NAME", "in the backward pass: none (default), selective (all but products) or full"),
    "recompute_every": (int, "N", "recompute every n-th layer alone (default: 1)"),
    "offload": (str, "NAME", "to the CPU's memory: none (default), activations, optimizer or both"),
    "optimizer_step": (str, "WHEN", "after (default), or in-backward, with --clip 0: each gradient is freed at once"),
    "tp": (int, "N", "tensor parallel: processes of torchrun that share each matrix (default: 1)"),
    "cp": (int, "N", "context parallel: processes of torchrun that share each row (default: 1)"),
    "pp": (int, "N", "pipeline parallel: stages of layers, each on processes of its own (default: 1)"),
    "pp_schedule": (str, "NAME", "of micro-batches in the stages: 1f1b (default), gpipe or interleaved"),
    "pp_stages": (int, "N", "of interleaved: stages that each process has (default: 2)"),
    "exact_scaling": (
        bool,
        "",
        "add gradients in an order that gives 1, 2, 4, ... processes of torchrun the same bits",
    ),
}


def add_options(parser: argparse.ArgumentParser, texts: Mapping[str, str]) -> None:
    """An option for each setting; texts: the help of those that the verb takes otherwise."""
    group = parser.add_argument_group("settings")
    for name, (kind, metavar, text) in SETTINGS.items():
        text = texts.get(name, text)
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            group.add_argument(option, action="store_true", default=None, help=text)
            continue
        short = ["-m"] if name == "model" else []
        group.add_argument(*short, option, type=kind, metavar=metavar, help=text)


def without_rivals(options: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The settings without those of the environment or the recipe file that an option of the command line overrules."""
    for one, other in RIVALS:
        if {one, other} <= given:
            raise UsageError(f"--{other} does nothing with --{one}: leave one of the two out")
        overruled = other if one in given else one if other in given else None
        options = {name: value for name, value in options.items() if name != overruled}
    return options


def check_needed(recipe: "Recipe", given: Collection[str]) -> None:
    """Raise UsageError for an option of the command line that does nothing in a recipe."""
    for names, is_needed, other in NEEDS:
        if (name := next((name for name in names if name in given), None)) and not is_needed(recipe):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does nothing without {other}: give that too, or leave {option} out")
