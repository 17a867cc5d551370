"""The systems that are measured: llamita and other libraries, with the same weights, each in its own process."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor

from llamita.bench import interpreters
from llamita.bench.workload import Workload
from llamita.errors import UnsupportedError, UsageError
from llamita.kernels.blocks import FORMATS

VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


class Session(Protocol):
    """A loaded model of some library."""

    def prefill(self, prompt: list[int]) -> None:
        """Compute the logits of the next token after a prompt, from an empty cache."""
        ...

    def decode_seconds(self, prompt: list[int], tokens: int) -> float:
        """Process a prompt and generate one token, then time the next `tokens`: seconds. No token ends the text."""
        ...

    def all_logits(self, document: list[int]) -> Tensor:
        """Compute the logits (T, V) after every token, if the system can."""
        ...

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload, `at_once` requests together, from an empty cache: seconds; if it can."""
        ...


@dataclass(frozen=True, kw_only=True)
class System:
    """A system that can be measured. Its module has `open_session(shape_name, format, path, threads)`."""

    name: str
    module: str
    formats: Mapping[str, str]  # our format -> its own; a format that is absent cannot be measured
    package: str = ""  # its name on PyPI
    extra: str = ""  # the extra of llamita that installs it
    file: str = "folder"  # the kind of file that it loads, a key of `files.KINDS`
    quantized_file: str = "gguf"
    has_all_logits: bool = True  # whether it computes the logits of every token
    serves: bool = False  # whether it writes many requests at once
    needs_file: bool = False  # whether it takes weights only from a file

    def label(self, format: str) -> str:
        """Its name in a row, with its own format if that differs."""
        own = self.formats[format]
        return self.name if own == format else f"{self.name} {own}"


FLOATS = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
BLOCKS = {name: name for name in FORMATS}
OURS = System(name="llamita", module="llamita.bench.ours", formats={**FLOATS, **BLOCKS, "int8": "int8"}, serves=True)
SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        OURS,
        System(
            name="transformers",
            module="llamita.bench.peers.transformers",
            formats=FLOATS,
            package="transformers",
            extra="bridge",
            serves=True,
        ),
        System(
            name="llama.cpp",
            module="llamita.bench.peers.llama_cpp",
            formats={**FLOATS, **BLOCKS},
            package="llama-cpp-python",
            extra="peers",
            file="gguf",
            serves=True,
            needs_file=True,
        ),
        System(
            name="openvino",
            module="llamita.bench.peers.openvino",
            formats={
                "fp32": "fp32",
                "bf16": "bf16",
                "q8_0": "int8",
                "int8": "int8",
                "q4_0": "int4",
                "q4_1": "int4",
                "q4_k": "int4",
            },
            package="openvino",
            extra="peers",
            file="openvino",
            quantized_file="openvino",
            has_all_logits=False,
            serves=True,
            needs_file=True,
        ),
    )
}


def named_systems(systems: str) -> list[str]:
    """Parse a comma-separated list of systems, ours first; raises UsageError for an unknown name."""
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise UsageError(f"bench does not know the system {unknown[0]!r}: use one of {', '.join(SYSTEMS)}")
    return [OURS.name, *(name for name in names if name != OURS.name)]


def interpreter(system: System, peers_python: str | None) -> str | None:
    """The Python that has a system's library: None for this one, else `peers_python`.

    Raises UnsupportedError if neither has it, or if `peers_python` lacks a package that llamita needs, and UsageError
    if `peers_python` is no Python.
    """
    if peers_python is not None:
        interpreters.check_is_program(peers_python)
    if not system.package or version(system.package, None):
        return None
    if peers_python is None:
        line = f"pip install 'llamita[{system.extra}]'"
        raise UnsupportedError(
            f"{system.package} is not installed: {line}, or give a Python that has it with --peers-python"
        )
    interpreters.check(peers_python)
    if version(system.package, peers_python):
        return peers_python
    raise UnsupportedError(
        f"{system.package} is installed neither here nor in --peers-python {peers_python}: "
        f"{peers_python} -m pip install {system.package}"
    )


@cache
def version(package: str, python: str | None) -> str:
    """The version of a package in an interpreter; empty if it is not installed."""
    done = subprocess.run([python or sys.executable, "-c", VERSION, package], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions(names: Sequence[str], peers_python: str | None) -> dict[str, str]:
    """The version of each peer's library, by the name of the system."""
    peers = [SYSTEMS[name] for name in names if SYSTEMS[name].package]
    return {peer.name: version(peer.package, interpreter(peer, peers_python)) for peer in peers}


def open_session(system: str, shape_name: str, format: str, path: Path | None, threads: int) -> Session:
    """Open a system's session on the file at `path`, or on random weights. Runs in a worker process."""
    return import_module(SYSTEMS[system].module).open_session(shape_name, format, path, threads)
