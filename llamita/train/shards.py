"""Checkpoints that several ranks write by torch.distributed.checkpoint: each its shards, in a safetensors file.

The files have the layout of torch's `HuggingFaceStorageWriter`, which has no pickle, and its reader reads them. This
writer also syncs its files, knows their sha256, and holds no second copy of them in memory.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from llamita.errors import BrokenFileError, LlamitaError
from llamita.files.disk import creating, explained
from llamita.files.safetensors import write_tensors
from llamita.train.draft import Draft, facts


class ShardWriter(StorageWriter):
    """Writes this rank's tensors to a draft; the first rank publishes it once all have written.

    The methods are those that torch.distributed.checkpoint calls, in this order.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the draft's folder is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans of all ranks, with their numbers."""
        return [replace(plan, storage_data=number) for number, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync one file; each result has its facts by its name."""
        path = self.draft.folder / f"shards-{plan.storage_data:05d}.safetensors"
        tensors: dict[str, Tensor] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}  # type: ignore[misc]
        assert len(tensors) == len(plan.items), "a rank has one part of each tensor"
        offsets = {item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)} for item in plan.items}  # type: ignore[union-attr]
        with creating(path, self.draft.target / path.name) as file:
            write_tensors(
                file, tensors, {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
            )
        written = {path.name: facts(path)}
        answer: Future[list[WriteResult]] = Future()
        answer.set_result([WriteResult(item.index, tensors[item.index.fqn].nbytes, written) for item in plan.items])
        return answer

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Publish the draft, on the first rank."""
        files = {name: known for rank in results for one in rank for name, known in one.storage_data.items()}
        with explained("write", self.draft.target):
            self.draft.publish(files)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a name of a checkpoint; nobody asks."""
        return True

    def storage_meta(self) -> StorageMeta | None:
        """Nothing about the storage."""
        return None


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of this rank's shards on the CPU, which the steps to come do not change."""
    return dict(BlockingAsyncStager(cache_staged_state_dict=False).stage(dict(tensors)))


def save(tensors: Mapping[str, Tensor], draft: Draft, group: Any) -> None:
    """Write a checkpoint; every rank of the group calls it with its shards. Raises LlamitaError on all of them."""
    try:
        save_state(dict(tensors), storage_writer=ShardWriter(draft), process_group=group)
    except CheckpointException as error:  # which is no Exception
        raise _reason(error, f"cannot write {draft.target}") from error


def load(
    folder: Path,
    prefix: str,
    like: Callable[[str], Tensor | None] = lambda name: None,
    needs: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names; no rank waits for another.

    like: the tensor whose shards a tensor of the same shape takes, or None; others are whole, on the CPU. needs:
    whether a tensor is read at all; others are meta tensors.
    """
    reader = HuggingFaceStorageReader(str(folder))
    known: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    names = {name: name.removeprefix(prefix) for name in known if name.startswith(prefix)}
    found = {name: _empty(known[name], like(rest)) for name, rest in names.items() if needs(rest)}
    others = {rest: _empty(known[name], None, "meta") for name, rest in names.items() if name not in found}
    try:
        with warnings.catch_warnings():  # that it does without a process group
            warnings.simplefilter("ignore", UserWarning)
            load_state(found, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise _reason(error, f"cannot read {folder}", BrokenFileError) from error
    return {names[name]: tensor for name, tensor in found.items()} | others


def _empty(known: Any, like: Tensor | None, device: str = "cpu") -> Tensor:
    if like is not None and like.shape == known.size:
        return torch.empty_like(like, dtype=known.properties.dtype, requires_grad=False)
    return torch.empty(known.size, dtype=known.properties.dtype, device=device)


def _reason(error: CheckpointException, what: str, kind: type[LlamitaError] = LlamitaError) -> LlamitaError:
    """What went wrong on the first rank where anything did."""
    found = [failure for failure, _ in error.failures.values()]
    own = next((failure for failure in found if isinstance(failure, LlamitaError)), None)
    return own or kind(f"{what}: {found[0]}")
