"""The processes that torchrun has started: their process group, and one device mesh with torchtitan's names."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from typing import TypeVar, cast

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from llamita.errors import LlamitaError, UnsupportedError, UsageError

T = TypeVar("T")
# Of the mesh, outermost first: pipeline, data (FSDP2), context, tensor. Neighbours in `tp` are neighbours in rank.
DIMS = ("pp", "dp_shard", "cp", "tp")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
TIMEOUT = timedelta(minutes=30)  # of one collective: others wait while rank 0 writes a checkpoint


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """How many processes each dim of the mesh has; `dp_shard` None takes those that the others leave."""

    dp_shard: int | None = None
    tp: int = 1
    cp: int = 1
    pp: int = 1

    def sizes(self, world_size: int) -> tuple[int, ...]:
        """The size of each of `DIMS`. Raises UsageError where their product is not the world size."""
        given = {"pp": self.pp, "dp_shard": self.dp_shard, "cp": self.cp, "tp": self.tp}
        if wrong := next((name for name, size in given.items() if size is not None and size < 1), None):
            raise UsageError(f"{wrong} is {given[wrong]}: it must be at least 1 process")
        known = {name: size for name, size in given.items() if size is not None}
        product = prod(known.values())
        rest, over = divmod(world_size, product)
        if over or (self.dp_shard is not None and rest != 1):
            said = [f"{name} {size}" for name, size in known.items() if size > 1 or name == "dp_shard"]
            what = f"{' x '.join(said)} is {product}, which" if len(said) > 1 else said[0]
            must = "divide" if self.dp_shard is None else "be"
            raise UsageError(
                f"{what} must {must} the number of processes, {world_size}: {_remedy(product)}, or change the degrees"
            )
        return tuple(size or rest for size in given.values())


def is_launched() -> bool:
    """Whether torchrun, or another launcher that sets its variables, has started this process."""
    return all(name in os.environ for name in VARIABLES)


def is_distributed() -> bool:
    """Whether this process is in a process group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process among all, also before it joins them; 0 without torchrun."""
    if is_distributed():
        return distributed.get_rank()
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """How many processes there are; 1 outside of a process group."""
    return distributed.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


@contextmanager
def processes(degrees: Degrees | None = None, *, device_type: str = "cpu") -> Iterator[DeviceMesh | None]:
    """Join the processes that torchrun has started, for as long as the block lasts; yields their mesh.

    The mesh has all of `DIMS`, those of one process too. None is yielded in a single process without torchrun.
    device_type: cpu (gloo) or cuda (nccl, one device a process: `cuda:LOCAL_RANK` becomes the current one).
    Raises UsageError where the degrees need torchrun or do not fit it, UnsupportedError where torch is built without.
    """
    degrees = degrees or Degrees()
    if not is_launched():
        _check_alone(degrees)
        yield None
        return
    sizes = degrees.sizes(int(os.environ["WORLD_SIZE"]))
    if not distributed.is_available():
        raise UnsupportedError("this torch is built without torch.distributed: start one process, without torchrun")
    backend = "gloo"
    if device_type == "cuda":
        backend = "cpu:gloo,cuda:nccl"  # gloo too: small facts are exchanged as CPU tensors
        torch.cuda.set_device(_local_device())
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield init_device_mesh(device_type, sizes, mesh_dim_names=DIMS)
    finally:
        distributed.destroy_process_group()


def arranged(found: DeviceMesh | None, degrees: Degrees) -> DeviceMesh | None:
    """The joined processes in a mesh of other degrees; every process asks. Raises what `processes` raises."""
    if found is None:
        _check_alone(degrees)
        return None
    sizes = degrees.sizes(world_size())
    return found if tuple(found.shape) == sizes else init_device_mesh(found.device_type, sizes, mesh_dim_names=DIMS)


def dim(found: DeviceMesh | None, name: str) -> DeviceMesh | None:
    """One dim of a mesh; None where it has a single process."""
    own = None if found is None else found[name]
    return own if own is not None and own.size() > 1 else None


def _check_alone(degrees: Degrees) -> None:
    count = max(1, prod((degrees.dp_shard or 1, degrees.tp, degrees.cp, degrees.pp)))
    if count > 1:
        raise UsageError(f"{count} processes are asked for, and this is a single one: {_remedy(count)}")
    degrees.sizes(1)


def _remedy(count: int) -> str:
    return f"start it by torchrun --nproc-per-node {count} -m llamita ..."


def _local_device() -> int:
    processes, count = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > count:  # every process of this machine says so, not those alone that have none
        raise UsageError(f"{processes} processes on this machine have {count} GPUs: start {count}, or use --device cpu")
    return int(os.environ["LOCAL_RANK"])


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns on rank 0, on every rank; it is called on that rank alone.

    A LlamitaError that it raises is raised on every rank, so that none waits for one that has left.
    """
    if not is_distributed():
        return compute()
    answer: list[object] = [None, None]
    if rank() == 0:
        try:
            answer[0] = compute()
        except LlamitaError as error:
            answer[1] = error
    distributed.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
    if isinstance(answer[1], LlamitaError):
        raise answer[1]
    return cast("T", answer[0])


def together(compute: Callable[[], T]) -> T:
    """What `compute` returns on this rank, once it has returned on every rank.

    Where it raises a LlamitaError on some of them, that of the lowest of these ranks is raised on every rank.
    """
    answer, own = None, None
    try:
        answer = compute()
    except LlamitaError as error:
        if not is_distributed():
            raise
        own = error
    if is_distributed():
        errors: list[LlamitaError | None] = [None] * world_size()
        distributed.all_gather_object(errors, own)
        if error := next((error for error in errors if error is not None), None):
            raise error
    return cast("T", answer)


def gathered(own: Mapping[str, T]) -> dict[str, T]:
    """What all ranks have by name, of which each gives its part; every rank must ask."""
    found: list[Mapping[str, T]] = [own] * world_size()
    if is_distributed():
        distributed.all_gather_object(found, dict(own))
    return {name: value for one in found for name, value in one.items()}


def on_any(is_so: bool) -> bool:
    """Whether something is so on any rank; every rank must ask."""
    return bool(largest(is_so))


def largest(value: float) -> float:
    """The largest of all ranks' values; every rank must ask."""
    if not is_distributed():
        return value
    found = torch.tensor([value], dtype=torch.float64)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return float(found)
