"""The models of `serve` and `batch`, and the limits of their engines."""

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING

from llamita import checks
from llamita.cli import address_space, model, names
from llamita.errors import UsageError
from llamita.files.disk import named_path

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.engine.engine import Engine
    from llamita.engine.limits import EngineLimits
    from llamita.llm import LLM
    from llamita.server.models import ServedModel

MOST_NAME = 256  # characters of a model's name in a request


def add_models(parser: argparse.ArgumentParser, *, is_positional: bool = False) -> None:
    """Which models, by -m or also by their bare names, and what requests call them."""
    what = "cria (the default), a folder, a .gguf file, or org/name on the hub; "
    if is_positional:
        parser.add_argument("model", nargs="*", default=argparse.SUPPRESS, help=f"{what}one or several")
    same = "the same, as an option; repeatable" if is_positional else f"{what}repeatable"
    parser.add_argument("-m", "--model", action="append", metavar="MODEL", help=same)
    parser.add_argument(
        "--alias", action="append", metavar="NAME", help="the name of a model in requests, one each (default: its own)"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME=FOLDER",
        help="a LoRA adapter of the model, which requests name as their model; repeatable (default: none)",
    )


def add_limits(group: argparse._ArgumentGroup) -> None:
    """How much an engine does at once."""
    group.add_argument("--max-num-seqs", type=int, default=32, metavar="N", help="texts that are written at once")
    group.add_argument("--max-num-batched-tokens", type=int, default=128, metavar="N", help="tokens of a step")
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="tokens of a prompt and its answer (default: the model's)"
    )
    group.add_argument(
        "--draft-model", metavar="MODEL", help="a smaller model of the same tokens, for speculative decoding"
    )
    group.add_argument(
        "--speculative-tokens",
        type=int,
        metavar="N",
        help="drafts of a text in a step, by its own text without a draft model (default: 5 with a draft, 0 without)",
    )
    group.add_argument("--kv-blocks", type=int, metavar="N", help="blocks of 16 tokens of the cache (default: as fit)")


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for what is wrong whatever the models are, and MemoryShortError where torch does not fit."""
    address_space.check()
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "kv_blocks"):
        if (value := getattr(args, name)) is not None:
            checks.count(f"--{name.replace('_', '-')}", value)
    if args.speculative_tokens is not None:
        checks.not_negative("--speculative-tokens", args.speculative_tokens)
    if args.draft_model is not None and len(args.model or [None]) > 1:
        raise UsageError("--draft-model is of one model, and there are several: give each its own llamita serve")
    if args.alias and len(args.alias) != len(args.model or [None]):
        raise UsageError(f"there are {len(args.alias)} --alias for {len(args.model or [None])} models: give each one")
    if len(set(args.alias or ())) < len(args.alias or ()):
        raise UsageError("two --alias are the same, and requests name a model by it: give each model its own")
    if any(not 0 < len(name) <= MOST_NAME for name in args.alias or ()):
        raise UsageError(
            f"an --alias has 1 to {MOST_NAME} characters, by which requests name the model: give such a one"
        )
    if args.adapter and len(args.model or [None]) > 1:
        raise UsageError("--adapter is of one model, and there are several: give each its own llamita serve")
    adapters(args)


def adapters(args: argparse.Namespace) -> dict[str, str]:
    """The folders of the adapters, by name. Raises UsageError."""
    found: dict[str, str] = {}
    for given in args.adapter or ():
        name, _, folder = given.partition("=")
        if not name or not folder:
            raise UsageError(
                f"--adapter is {checks.quoted(given)}: give a name and a folder, such as sql=path/to/folder"
            )
        if name in found:
            raise UsageError(f"--adapter names {checks.quoted(name)} twice: give each adapter a name of its own")
        found[name] = folder
    return found


def limits(args: argparse.Namespace, *, max_num_queued: int) -> "EngineLimits":
    """The limits of each engine."""
    from llamita.engine.limits import EngineLimits

    return EngineLimits(
        max_num_seqs=args.max_num_seqs,
        max_num_queued=max_num_queued,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        num_blocks=args.kv_blocks,
        num_speculative_tokens=args.speculative_tokens,
    )


def check_sharing(args: argparse.Namespace) -> None:
    """Raise UsageError for what a model that several processes share does not have."""
    asked = {
        "several models": len(args.model or ()) > 1,
        "--adapter": bool(args.adapter),
        "--draft-model": args.draft_model is not None,
        "--speculative-tokens": bool(args.speculative_tokens),
        "--replicas": args.replicas is not None,
        "--unload-idle": args.unload_idle is not None,
    }
    if args.tp > 1 and (name := next((name for name, is_asked in asked.items() if is_asked), None)):
        raise UsageError(f"--tp shares one plain model between processes, which leave {name} out: give one of the two")


def load(args: argparse.Namespace, limits: "EngineLimits", mesh: "DeviceMesh | None" = None) -> "list[ServedModel]":
    """The models, loaded one after another, each with its engine. mesh: the processes that share a single one."""
    from llamita.server.models import served_models, short_name

    if mesh is not None:
        llm = shared(args, mesh)
        return served_models(args.alias[0] if args.alias else short_name(llm.name), llm.engine(limits))

    served: list[ServedModel] = []
    for number, name in enumerate(args.model or [None]):
        name = None if name is None else names.understood(name)
        llm = model.load_named(name, args, adapters(args))
        alias = args.alias[number] if args.alias else short_name(llm.name)
        served += served_models(alias, llm.engine(limits), partial(_engine, name, args, limits))
    return served


def shared(args: argparse.Namespace, mesh: "DeviceMesh") -> "LLM":
    """The model that the processes of a mesh share; each asks for its part."""
    name = None if not args.model else names.understood(args.model[0])
    return model.load_named(name, args, mesh=mesh)


def _engine(name: str | None, args: argparse.Namespace, limits: "EngineLimits") -> "Engine":
    """The engine of a model that was unloaded."""
    quiet = argparse.Namespace(**{**vars(args), "quiet": True})
    return model.load_named(name, quiet, adapters(args)).engine(limits)


def is_on_gpu(args: argparse.Namespace) -> bool:
    """Whether a model goes to a GPU."""
    import torch

    return args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())


def for_replicas(args: argparse.Namespace, on_machine: int) -> argparse.Namespace:
    """The arguments as each of several processes loads its models: without keys, and each with its share of the cores.

    on_machine: how many of them a machine has. A folder or a file is named by its whole path. Of GPUs a process sees
    its own alone.
    """
    values = {**vars(args), "api_key": None, "api_key_file": None, "admin_key": None, "quiet": True}
    if args.model is not None:
        values["model"] = [_whole_path(name) for name in map(names.understood, args.model)]
    if args.draft_model is not None:
        values["draft_model"] = _whole_path(args.draft_model)
    values["adapter"] = [f"{name}={named_path(folder).resolve()}" for name, folder in adapters(args).items()]
    if args.threads is None:
        values["threads"] = max(1, (os.cpu_count() or 1) // on_machine)
    if args.device.startswith("cuda"):
        values["device"] = "cuda"
    return argparse.Namespace(**values)


def _whole_path(name: str) -> str:
    """The whole path of a folder or a file that is here; another name as it is."""
    path = named_path(name)
    return str(path.resolve()) if path.exists() else name
