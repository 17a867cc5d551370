"""The model that a command line names, loaded and ready."""

import argparse
import os
import random
import sys
import warnings
from typing import TYPE_CHECKING

from llamita.cli import failure, terminal

if TYPE_CHECKING:
    from llamita.llm import LLM


def load(arguments: argparse.Namespace) -> "LLM":
    """The model of -m, as --device, --dtype and --attn want it; importing torch is part of the wait."""
    warnings.showwarning = terminal.warn
    warnings.simplefilter("ignore", DeprecationWarning)
    if arguments.quiet or not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    message = f"loading {arguments.model or 'cria'}"
    with failure.leaving_at_once(), terminal.waiting(message, is_quiet=arguments.quiet):
        from llamita import llm

        return llm.load(
            arguments.model,
            dtype=arguments.dtype,
            device=arguments.device,
            attn_implementation=arguments.attn,
            offline=arguments.offline,
            quantize=arguments.quantize,
            draft=getattr(arguments, "draft_model", None),
            kernels=arguments.kernels,
            compile=arguments.compile,
            deterministic=arguments.deterministic,
        )


def chosen_seed(arguments: argparse.Namespace) -> int:
    """The seed asked for, or a fresh one: it is reported, so that any text can be had again."""
    return random.randrange(2**32) if arguments.seed is None else arguments.seed
