"""Verbs under torchrun: the processes that it starts work together, and the first one alone speaks."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llamita.cli import errors
from llamita.errors import LlamitaError, UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.parallel.mesh import Degrees

T = TypeVar("T")
# What gloo and nccl say where another process has gone.
GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "remote process exited",
    "connection was likely closed",
    "ncclremoteerror",
)


def is_other() -> bool:
    """Whether torchrun has started this process and it is not the first; asks no library."""
    return "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0"


@contextmanager
def saying_once() -> Iterator[None]:
    """Let the first process alone say what every one would: help, and what is wrong with the command line."""
    try:
        with _quiet(is_other()):
            yield
    except UsageError as error:
        if is_other():
            raise SystemExit(0) from error
        raise


def command() -> str:
    """How this program was started, for a line that starts it again."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return f"torchrun --nproc-per-node {count} -m llamita" if "LOCAL_RANK" in os.environ else "llamita"


@contextmanager
def joined(device: str, degrees: "Degrees | None" = None) -> "Iterator[DeviceMesh | None]":
    """The mesh of torchrun's processes, or None in a single one. All but the first print nothing.

    A LlamitaError concerns all of them, so the first one says it and the others leave quietly: torchrun would end the
    first in the middle of its sentence if another failed before.
    Raises LlamitaError where another process has died.
    """
    import torch

    from llamita.parallel import mesh
    from llamita.parallel.followers import LostProcess

    # DTensor tells how a mesh of two dims could gather faster, and how gloo gathers: nothing that a user can act on.
    for name in ("_redistribute", "_collective_utils"):
        logging.getLogger(f"torch.distributed.tensor.{name}").setLevel(logging.ERROR)
    has_gpu = torch.cuda.is_available() and device.startswith(("auto", "cuda"))
    try:
        with _quiet(is_other()), mesh.processes(degrees, device_type="cuda" if has_gpu else "cpu") as found:
            yield found
    except LostProcess as error:
        raise LlamitaError(f"process {mesh.rank()}: {error}") from error
    except LlamitaError as error:
        if is_other():
            raise SystemExit(0) from error
        raise
    except RuntimeError as error:
        if mesh.is_launched() and any(sign in str(error).lower() for sign in GONE):
            raise LlamitaError(
                f"process {mesh.rank()} has lost another one, which has died: see what that one said, and start again "
                "(train: with --resume)"
            ) from error
        raise


@contextmanager
def sharing(device: str, tp: int) -> "Iterator[DeviceMesh | None]":
    """The mesh of `tp` processes of torchrun that share a model, or None in a single one, which loads no torch here."""
    if tp == 1 and "LOCAL_RANK" not in os.environ:
        yield None
        return
    with errors.leaving_at_once():
        from llamita.parallel.mesh import Degrees
    with joined(device, Degrees(dp_shard=1, tp=tp)) as found:
        yield found


def together(compute: Callable[[], T], mesh: "DeviceMesh | None") -> T:
    """What `compute` returns here; where it raises a LlamitaError in any process of a mesh, that in all of them."""
    if mesh is None:
        return compute()
    from llamita.parallel import mesh as processes

    return processes.together(compute)


def from_first(compute: Callable[[], T], mesh: "DeviceMesh | None") -> T:
    """What `compute` returns in the first process of a mesh, in all of them; without a mesh, here."""
    if mesh is None:
        return compute()
    from llamita.parallel import mesh as processes

    return processes.from_first(compute)


@contextmanager
def _quiet(is_quiet: bool) -> Iterator[None]:
    """Print nothing; what was not foreseen is said later, by whoever catches it."""
    if not is_quiet:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
