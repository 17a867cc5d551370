"""`llamita serve`: serve a model with OpenAI's API."""

import argparse
import json
import math
import shlex
import signal
import socket
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from llamita import checks
from llamita.cli import errors, ranks, served, terminal
from llamita.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.server.models import ModelSummary
    from llamita.server.settings import ServerSettings

NAME = "serve"
HELP = "serve a model over HTTP, as OpenAI's clients know it"
EXAMPLES = """\
  llamita serve
  llamita serve --open
  llamita serve path/to/model --port 8000
  llamita serve org/name path/to/model.gguf --alias large --alias small
  llamita serve org/name --adapter sql=path/to/adapter --adapter tone=other/adapter
  llamita serve --host 0.0.0.0 --api-key-file keys.txt
  llamita serve --replicas 4
  torchrun --nproc-per-node 2 -m llamita serve --tp 2
"""
PORT = 8080


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, where, for whom, and how much at once."""
    served.add_models(parser, is_positional=True)
    group = parser.add_argument_group("address and access")
    group.add_argument("--host", default="127.0.0.1", help="the address to listen at; 0.0.0.0 is every one")
    group.add_argument("--port", type=int, metavar="N", help=f"the port (default: {PORT}, or the next free one)")
    group.add_argument(
        "--api-key", action="append", metavar="KEY", help="let in only who has it, repeatable (default: everybody)"
    )
    group.add_argument("--api-key-file", metavar="FILE", help="the same, one key a line (default: none)")
    group.add_argument("--admin-key", metavar="KEY", help="for /metrics (default: an API key)")
    group.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="answer to this name, repeatable (default: this machine's)",
    )
    group.add_argument("--open", action="store_true", help="open the page in a browser")
    group.add_argument("--receipts", action="store_true", help="give a receipt with every answer, for llamita replay")
    group.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="processes on Ray Serve that share the port (default: no others)",
    )
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    served.add_limits(group)
    group.add_argument("--max-num-queued", type=int, default=256, metavar="N", help="texts that may wait; more get 429")
    group.add_argument(
        "--queue-timeout", type=float, metavar="S", help="seconds that a text may wait for its turn (default: any)"
    )
    group.add_argument("--max-connections", type=int, default=1000, metavar="N", help="open at once; more get 503")
    group.add_argument(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds to finish answers when it is stopped, or inf",
    )
    group.add_argument(
        "--unload-idle",
        type=float,
        metavar="MINUTES",
        help="unload a model that nobody has asked for so long; the next request loads it again (default: never)",
    )
    group.add_argument("--log-level", default="info", metavar="LEVEL", help="debug, info, warning or error")
    group.add_argument("--log-json", action="store_true", help="log an object a line")


def run(args: argparse.Namespace) -> int:
    """Check everything that is cheap, bind the port, load the models, serve."""
    _check(args)
    with ranks.sharing(args.device, args.tp) as mesh:
        if mesh is not None and ranks.is_other():
            return _follow(args, mesh)
        return _run(args, mesh)


def _follow(args: argparse.Namespace, mesh: "DeviceMesh") -> int:
    """Take part in the passes of the first process, until that ends; its signals are for this one too."""
    ranks.together(lambda: None, mesh)  # the first one's port and settings
    llm = served.shared(args, mesh)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    llm.follow()
    return 0


def _run(args: argparse.Namespace, mesh: "DeviceMesh | None") -> int:
    with errors.leaving_at_once():
        from llamita.server import run
        from llamita.server.models import ModelSummary

        chosen, listener = ranks.together(lambda: _prepared(args), mesh)
    try:
        if args.replicas is not None:
            return _run_replicas(args, chosen, listener)
        limits = served.limits(args, max_num_queued=args.max_num_queued)
        with errors.leaving_at_once():
            server = run.Server(served.load(args, limits, mesh), chosen)
            summaries = [ModelSummary.of(model) for model in server.state.models]
        address = _address(args.host, *listener.getsockname()[:2])
        server.listen(listener, lambda: _greet(summaries, server.paths, address, args))
        return server.exit_code
    finally:
        listener.close()


def _prepared(args: argparse.Namespace) -> "tuple[ServerSettings, socket.socket]":
    """The settings, and a socket at the port, before any model is loaded."""
    from llamita.server import listener, log

    chosen = _settings(args)
    level = "warning" if args.quiet and "log_level" not in args.given else args.log_level
    log.set_up(level, as_json=args.log_json)
    tries = listener.PORTS if args.port is None else 1
    bound = listener.bind(args.host, PORT if args.port is None else args.port, tries=tries)
    chosen = replace(chosen, host=bound.getsockname()[0])  # 127.1 is this machine too
    if not (chosen.is_local or chosen.keys or args.quiet):
        terminal.warn("without a key, all who reach this machine can use the server: --api-key lets in who has it")
    return chosen, bound


def _run_replicas(args: argparse.Namespace, settings: "ServerSettings", listener: socket.socket) -> int:
    """Start the replicas, and serve their port."""
    from llamita.server.replicas import deployment
    from llamita.server.replicas.front import FrontServer

    limits = served.limits(args, max_num_queued=args.max_num_queued)
    load = partial(served.load, served.for_replicas(args, args.replicas), limits)
    options = deployment.ReplicaOptions(
        count=args.replicas,
        max_num_seqs=limits.max_num_seqs,
        max_num_queued=limits.max_num_queued,
        num_gpus=int(served.is_on_gpu(args)),
    )
    level = "debug" if args.log_level == "debug" else "warning"  # each request is logged here already
    address = _address(args.host, *listener.getsockname()[:2])
    message = f"starting {args.replicas} replicas"
    with ExitStack() as stack:
        with terminal.waiting(message, is_quiet=args.quiet):
            running = stack.enter_context(deployment.running(load, settings, options, level))
        server = FrontServer(running.app, settings)
        server.listen(listener, lambda: _greet(running.models, running.paths, address, args))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for what is wrong whatever the models are."""
    from llamita.server.log import LEVELS

    if args.port is not None and not 0 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}: take one from 1 to 65535, or 0 for any")
    if args.log_level not in LEVELS:
        raise UsageError(f"--log-level is {checks.quoted(args.log_level)}: say debug, info, warning or error")
    served.check(args)
    served.check_sharing(args)
    if args.replicas is not None:
        checks.count("--replicas", args.replicas)
        if args.unload_idle is not None:
            raise UsageError("--unload-idle is of one process: leave it or --replicas out")
    if args.unload_idle is not None:
        checks.positive("--unload-idle", args.unload_idle)
    checks.not_negative("--max-num-queued", args.max_num_queued)
    checks.count("--max-connections", args.max_connections)
    for name in ("drain_timeout", "queue_timeout"):
        if (seconds := getattr(args, name)) not in (None, math.inf):
            checks.not_negative(f"--{name.replace('_', '-')}", seconds)


def _settings(args: argparse.Namespace) -> "ServerSettings":
    from llamita.server.access import named_host
    from llamita.server.keys import Keys, read_keys
    from llamita.server.settings import ServerSettings

    keys = list(args.api_key or [])
    if args.api_key_file is not None:
        keys += read_keys(args.api_key_file)
    return ServerSettings(
        host=args.host,
        keys=Keys.of(keys),
        admin_keys=Keys.of([] if args.admin_key is None else [args.admin_key]),
        allowed_hosts=tuple(map(named_host, args.allowed_host)) if args.allowed_host else None,
        max_connections=args.max_connections,
        queue_timeout=args.queue_timeout,
        drain_timeout=args.drain_timeout,
        has_receipts=args.receipts,
        unload_after=None if args.unload_idle is None else args.unload_idle * 60,
    )


def _address(name: str, bound: str, port: int) -> str:
    """The address to ask a server at, from this machine: by the name of --host, or what was bound for a number."""
    from llamita.server.access import in_header

    bound = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound, bound)
    is_name = ":" not in name and any(letter.isalpha() for letter in name)
    return f"http://{name if is_name else in_header(bound)}:{port}"


def _greet(models: "Sequence[ModelSummary]", paths: set[str], address: str, args: argparse.Namespace) -> None:
    """Say where the server is, and how to ask it something."""
    page = f"{address}/" if "/" in paths else f"{address}/docs"
    if args.quiet:
        terminal.show(f"{address}\n")
    else:
        for model in models:
            size = f"{model.parameters / 1e6:,.1f} M parameters"
            terminal.note(f"{model.name}, {size}, reads {model.context_length} tokens")
        key = "YOUR_KEY" if args.api_key or args.api_key_file else "none"
        terminal.show(_lines(address, page, models[0].name, key, has_messages="/v1/messages" in paths))
        terminal.note("Ctrl-C stops it")
    if args.open:
        threading.Thread(target=_open, args=(page,), daemon=True).start()


def _open(page: str) -> None:
    """Open the page in a browser, and say so where there is none; a browser of text keeps its thread until it ends."""
    if not webbrowser.open(page):
        terminal.warn(f"no browser was found here: open {page} in one")


def _lines(address: str, page: str, name: str, key: str, *, has_messages: bool) -> str:
    """The address, the page, a curl line and a line for each SDK, ready to be copied."""
    authorization = "" if key == "none" else f" -H 'Authorization: Bearer {key}'"
    body = shlex.quote(json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]}))
    lines = [
        f"listening  {address}",
        f"page       {page}",
        f"curl       curl {address}/v1/chat/completions -H 'Content-Type: application/json'{authorization} -d {body}",
        f'openai     client = openai.OpenAI(base_url="{address}/v1", api_key="{key}")',
    ]
    if has_messages:
        lines.append(f'anthropic  client = anthropic.Anthropic(base_url="{address}", api_key="{key}")')
    return "\n".join(lines) + "\n"
