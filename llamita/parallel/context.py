"""Context parallelism: each process of the `cp` dim has a part of every row, and all processes' keys and values.

Queries stay where they are; keys and values are gathered in each layer, and their gradients are summed and scattered
(as torchtitan's all-gather variant). Equals one process on the whole rows.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from llamita.attention import backend
from llamita.attention.mask import Mask
from llamita.config import LlamaConfig
from llamita.context.causal import Causal
from llamita.context.packed import documents_of
from llamita.context.protocol import Rotation
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.shard import Pass


class ContextParallel(Causal):
    """A pass over this process's part of rows whose tokens attend to the tokens before them in all parts.

    positions: (B, T) of the part; the parts lie in the order of the ranks and are equally long. Positions that start
    again mean packed documents, as in a whole row.
    """

    def __init__(self, positions: Tensor, config: LlamaConfig, mesh: DeviceMesh, *, dropout: float = 0.0) -> None:
        self.mesh = mesh
        length, first = positions.shape[1], mesh.get_local_rank() * positions.shape[1]
        numbers = documents_of(
            _concatenated(positions, mesh.get_group())
        )  # looks at the whole rows, as one process does
        documents = None if numbers is None else (numbers[:, first : first + length], numbers)
        mask = Mask(
            length, length * mesh.size(), device=positions.device, offset=first, window=config.sliding_window,
            documents=documents,
        )  # fmt: skip
        attend = backend(config.attn_implementation)
        super().__init__(positions, mask, backend=attend, scale=config.softmax_scale, dropout=dropout)

    def store(self, k: Tensor, v: Tensor, rotation: Rotation, layer: int) -> tuple[Tensor, Tensor]:
        """The rotated keys and the values of all parts: (B, T, K, H) -> (B, K, S, H)."""
        both = torch.cat((rotation(k), v), dim=2)  # one collective for the two
        own = DTensor.from_local(both, self.mesh, [Shard(1)], run_check=False)
        # Every rank has a gradient of all keys, for its queries alone: they are summed.
        whole = own.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        keys, values = whole.chunk(2, dim=2)
        return keys.transpose(1, 2), values.transpose(1, 2)


class Sliced(plan.StandIn):
    """The forward of a base model for the part of a row that this process has."""

    plan = "context"

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__(module)
        self.mesh = mesh

    def __call__(self, input_ids: Tensor, *, position_ids: Tensor | None = None, **named: Any) -> Any:
        """The module's own forward, in a context of all parts. Raises UnsupportedError for masks and caches."""
        if any(named.get(name) is not None for name in ("attention_mask", "past_key_values", "context")):
            raise UnsupportedError("context parallelism is for training on packed rows, without a mask or a cache")
        config = cast("LlamaConfig", self.module.config)
        if position_ids is None:
            length = input_ids.shape[1]
            first = self.mesh.get_local_rank() * length
            position_ids = torch.arange(first, first + length, device=input_ids.device)[None]
        dropout = config.attention_dropout if self.module.training else 0.0
        context = ContextParallel(position_ids, config, self.mesh, dropout=dropout)
        return self.plain(input_ids, **named | {"context": context, "use_cache": False})


class ColumnsPass(Pass):
    """A model's pass over this process's part of a batch, which is called with the whole one."""

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__(model)
        self.mesh = mesh

    def forward(self, compute: Callable[..., Tensor], *given: Any) -> Tensor:
        """What `compute(model, part)` returns of a batch, by the method `columns` of that."""
        (batch,) = given
        return super().forward(compute, batch.columns(self.mesh.get_local_rank(), self.mesh.size()))


def pass_of(model: LlamaForCausalLM, mesh: DeviceMesh | None) -> Pass:
    """A model's pass; with a mesh of the dim `cp`, over this process's part of every row.

    Gradients are of this part's loss: they are summed over the mesh, as those of data parallelism are.
    Raises what `split_rows` raises.
    """
    if mesh is None:
        return Pass(model)
    split_rows(model, mesh)
    return ColumnsPass(model, mesh)


def split_rows(model: LlamaForCausalLM, mesh: DeviceMesh) -> None:
    """Let a model read this process's part of every row, with the other parts' keys and values.

    Raises UnsupportedError for a rotary type whose frequencies depend on the length of a pass.
    """
    rope = model.config.rope_parameters
    if rope.depends_on_length:
        raise UnsupportedError(
            f"rotary type {rope.rope_type} depends on the length of a row, of which context parallelism has parts: "
            "leave --cp out"
        )
    plan.apply(model, Sliced.plan, [Sliced(model.model, mesh)], also=model.modules())


def check_length(length: int, cp: int) -> None:
    """Raise UsageError where the processes cannot share a row evenly."""
    if length % cp:
        raise UsageError(
            f"length is {length}, which {cp} processes of --cp cannot share evenly: take a multiple of {cp}"
        )


def _concatenated(part: Tensor, group: Any) -> Tensor:
    """The parts (B, T) of all ranks, one after another: (B, S)."""
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=1)
