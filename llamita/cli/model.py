"""The model that a command line names, loaded and ready."""

import argparse
import math
import os
import random
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamita import checks
from llamita.cli import address_space, errors, names, terminal
from llamita.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.llm import LLM

HOT = 4  # a temperature from which a text is noise


def set_threads(count: int | None) -> None:
    """Import torch, and let it compute with this number of threads; None leaves its own."""
    if count is not None:
        checks.threads("--threads", count)
    address_space.check()
    import torch

    if count is not None:
        torch.set_num_threads(count)


def wait_asleep() -> None:
    """Let threads of torch that wait sleep, for verbs of many short products; called before torch is imported.

    As they wait by default, they take the processor from those that compute where other programs are busy.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def load(arguments: argparse.Namespace, mesh: "DeviceMesh | None" = None) -> "LLM":
    """The model of -m, as --device, --dtype and --attn want it; importing torch is part of the wait."""
    _look_for_mistakes(arguments)
    return load_named(arguments.model, arguments, mesh=mesh)


def load_named(
    name: str | None,
    arguments: argparse.Namespace,
    adapters: Mapping[str, str] | None = None,
    mesh: "DeviceMesh | None" = None,
) -> "LLM":
    """A model by its name, as the arguments want it. adapters, mesh (device_mesh): see `llamita.load`."""
    warnings.simplefilter("ignore", DeprecationWarning)
    if arguments.quiet or not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    message = f"loading {name or 'cria'}"
    with errors.leaving_at_once(), terminal.waiting(message, is_quiet=arguments.quiet):
        set_threads(arguments.threads)
        from llamita import loader
        from llamita.kernels.cpu.runtime import code_cache

        folder, count = code_cache.contents()
        llm = loader.load(
            name,
            dtype=arguments.dtype,
            device=arguments.device,
            attn_implementation=arguments.attn,
            offline=arguments.offline,
            quantize=arguments.quantize,
            draft=getattr(arguments, "draft_model", None),
            adapter=None if adapters is not None else getattr(arguments, "adapter", None),
            adapters=adapters,
            kernels=arguments.kernels,
            compile=arguments.compile,
            deterministic=arguments.deterministic,
            device_mesh=mesh,
        )
    if count == 0 and sys.stderr.isatty() and not arguments.quiet:
        _announce_compilation(llm, is_cached=folder is not None)
    return llm


def _announce_compilation(llm: "LLM", *, is_cached: bool) -> None:
    """Say why the first text takes longer, where no kernels were cached."""
    from llamita.plans.cpu import is_fused

    if is_fused(llm.model):
        again = "kept for the next time" if is_cached else "not kept, as there is no home folder"
        terminal.note(f"(kernels are compiled for this processor, which takes some ten seconds, and {again})")


def _look_for_mistakes(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant, and say what is likely not: the letters that llama.cpp takes for something else."""
    if not hasattr(arguments, "max_tokens"):  # a verb that writes nothing by these options
        return
    if arguments.max_tokens == -1:
        raise UsageError("-n is -1: leave it out, a text then goes to its end or to the end of the context")
    warm, system = arguments.temperature, arguments.system or ""
    if warm is not None and math.isfinite(warm) and warm >= HOT and not arguments.quiet:
        terminal.warn(f"with -t {warm:g} nearly any token is as likely as another: the number of threads is --threads")
    if system.isdecimal() and not arguments.quiet:
        terminal.warn(f"-s {system[:60]} gives a system message, the seed is --seed")


def look_for_a_name(text: str | None, *, is_quiet: bool) -> None:
    """Raise UsageError where a text is the name of a model that lies here; warn of one that looks like a hub's."""
    if text and names.is_model(text):
        raise UsageError(f"{text} is a model, not a text: name it with -m {text}")
    if text and not is_quiet and names.ON_HUB.fullmatch(text):
        terminal.warn(f"{text} is read as a text: if it is a model, write -m {text}")


def chosen_seed(arguments: argparse.Namespace) -> int:
    """The seed asked for, or a fresh one: it is reported, so that any text can be had again."""
    return random.randrange(2**32) if arguments.seed is None else arguments.seed
