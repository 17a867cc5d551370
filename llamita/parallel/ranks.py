"""The ranks that share a global batch: which rows are whose, and the little that they tell each other."""

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from llamita.errors import UsageError
from llamita.parallel.mesh import dim


class Splits(Protocol):
    """A batch that can be cut into parts, in order."""

    def __len__(self) -> int: ...

    def split(self, rows: int) -> Sequence[Self]:
        """Parts of at most `rows` rows."""
        ...


B = TypeVar("B", bound=Splits)


class DataRanks:
    """The data-parallel ranks of a mesh, or a single process (None).

    mesh: the dim `dp_shard`, None for a single rank. rank: this one's number among the `size` ranks. context: the dim
    `cp`, whose ranks have parts of the same rows. sharding: what FSDP2 shards over: both, as one dim.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = dim(mesh, "dp_shard")
        self.context = dim(mesh, "cp")
        self.sharding = self.mesh or self.context
        if mesh is not None and self.mesh is not None and self.context is not None:
            # Of two dims FSDP2 would shard over the second alone, and keep copies over the first.
            self.sharding = mesh["dp_shard", "cp"]._flatten("dp_shard_cp")
        self.rank = 0 if self.mesh is None else self.mesh.get_local_rank()
        self.size = 1 if self.mesh is None else self.mesh.size()

    def check_rows(self, rows: int) -> None:
        """Raise UsageError where the rows of a step are no multiple of the ranks."""
        if rows % self.size:
            near = max(1, rows // self.size) * self.size
            raise UsageError(
                f"a step has {rows} rows, which {self.size} processes cannot share evenly: "
                f"set --batch-tokens so that it has {near} rows or another multiple, or start another number of them"
            )

    def share(self, batch: B, rows: int) -> list[B]:
        """This rank's micro-batches of a global batch, of at most `rows` rows each.

        The global batch is cut into turns; in each turn every rank takes one micro-batch, in the order of the ranks.
        """
        rows = min(rows, len(batch) // self.size)
        turns = batch.split(rows * self.size)
        return [turn.split(len(turn) // self.size)[self.rank] for turn in turns]

    def number(self, turn: int) -> int:
        """The number of this rank's micro-batch of a turn, among all of the global batch."""
        return turn * self.size + self.rank

    def in_order(self, values: Sequence[float]) -> list[float]:
        """The values of all ranks' micro-batches, in the order of the global batch; each rank has as many.

        What ranks have of the same rows is added.
        """
        own = torch.tensor(values, dtype=torch.float64, device="cpu")
        if self.context is not None:
            distributed.all_reduce(own, group=self.context.get_group())
        if self.mesh is None:
            return own.tolist()
        found = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(found, own, group=self.mesh.get_group())
        return torch.stack(found, dim=1).flatten().tolist()
