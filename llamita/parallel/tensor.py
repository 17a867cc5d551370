"""Tensor parallelism: the matrices of a finished model over the `tp` dim of a mesh, by a table of placements.

For training, Megatron's cut (arXiv:1909.08053): q, k, v, gate and up by columns, o and down by rows, the embedding, the
head and the loss by vocabulary; between them each process keeps a part of the sequence (arXiv:2205.05198). For writing,
all matrices by columns, so that no sum is cut and every number is computed as one process computes it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn import functional

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.factors import factors_of
from llamita.model.layers import LlamaRMSNorm
from llamita.model.parts import NORMS, PRODUCTS, parts_of
from llamita.parallel.shard import whole

WHOLE, ROWS, TOKENS, FEATURES = Replicate(), Shard(0), Shard(1), Shard(-1)  # of weights (out, in), of states (B, T, D)


@dataclass(frozen=True)
class Part:
    """How one part of a model is sharded: its weight, and the layouts of what it reads and gives.

    comes: how an input arrives that is a plain tensor. reads: what the part computes on, gives: what it returns.
    is_local: whether the output becomes a plain tensor, of the process's own part.
    """

    weight: Placement
    comes: Placement = WHOLE
    reads: Placement = WHOLE
    gives: Placement = WHOLE
    is_local: bool = False

    def of(self, name: str) -> Placement:
        """How a parameter of this name is sharded: a bias, and an adapter's A and B, with the sides of the weight."""
        outputs = ROWS if self.weight == ROWS else WHOLE
        inputs = WHOLE if self.weight == ROWS else self.weight
        return {"bias": outputs, "A": inputs, "B": outputs}.get(name, self.weight)


COLUMNS = Part(ROWS, gives=FEATURES, is_local=True)
_BY_ROWS = Part(Shard(1), comes=FEATURES, reads=FEATURES, gives=TOKENS)
_NORM = Part(WHOLE, comes=TOKENS, reads=TOKENS)
_GATHERED = Part(ROWS, comes=FEATURES, is_local=True)

# The parts around the layers, in a causal LM.
AROUND = {"embedding": "model.embed_tokens", "last_norm": "model.norm", "head": "lm_head"}
# Each part, by the names of `llamita.model.parts` and of `AROUND`.
TRAINING: Mapping[str, Part] = {
    "embedding": Part(ROWS, gives=TOKENS),
    **dict.fromkeys(NORMS, _NORM),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), COLUMNS),
    **dict.fromkeys(("o", "down"), _BY_ROWS),
    "last_norm": Part(WHOLE, comes=TOKENS, reads=TOKENS, is_local=True),
    "head": Part(ROWS, gives=FEATURES),
}
WRITING: Mapping[str, Part] = {
    "embedding": Part(ROWS, is_local=True),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), COLUMNS),
    **dict.fromkeys(("o", "down"), _GATHERED),
    "head": Part(ROWS, is_local=True),
}


class CausalLM(Protocol):
    """What a model has besides modules."""

    config: LlamaConfig

    def tie_weights(self) -> None:
        """Make each tied weight the very tensor of its twin."""
        ...


class Sharded(plan.StandIn):
    """The forward of a module whose parameters are sharded; removing the plan gathers them again."""

    plan = "tensor"

    def __init__(self, module: nn.Module, part: Part, mesh: DeviceMesh) -> None:
        super().__init__(module)
        self.part, self.mesh, self.processes = part, mesh, mesh.size()

    def __call__(self, x: Tensor) -> Tensor | DTensor:
        """The module's own forward, of an input and to an output in the layouts of its part."""
        part, mesh = self.part, self.mesh
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [part.comes], run_check=False)
        out = self.plain(x.redistribute(placements=[part.reads])).redistribute(placements=[part.gives])
        return out.to_local() if part.is_local else out

    def undo(self, model: nn.Module) -> None:
        """Gather every weight on every process."""
        _replace_parameters(model, lambda module, name, weight: whole(weight))


class Columns(Sharded):
    """Must equal `Sharded` for a part of `WRITING`, without DTensor, which takes 0.7 s to plan each new shape.

    Products are of this process's rows of the weight, and what they give is gathered.
    """

    def __call__(self, x: Tensor) -> Tensor | DTensor:
        """The module's own forward; by DTensor where gradients are wanted, or another plan is underneath."""
        if torch.is_grad_enabled() or self.under is not None or isinstance(x, DTensor):
            return super().__call__(x)
        module = cast("nn.Linear | nn.Embedding", self.module)
        weight = cast("DTensor", module.weight)
        if isinstance(module, nn.Embedding):
            return self._rows(
                x, weight.to_local(), first=self.mesh.get_local_rank() * _share(weight.shape[0], self.processes)
            )
        if self.part.comes == FEATURES:
            x = self._gathered(x, weight.shape[1])
        bias = None if module.bias is None else cast("DTensor", module.bias).to_local()
        out = functional.linear(x, weight.to_local(), bias)
        return out if self.part.gives == FEATURES else self._gathered(out, weight.shape[0])

    def _gathered(self, own: Tensor, size: int) -> Tensor:
        """All features (..., size) of which this process has its part; the last processes may have fewer."""
        share = _share(size, self.processes)
        padded = functional.pad(own, (0, share - own.shape[-1])).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.processes)]
        distributed.all_gather(parts, padded, group=self.mesh.get_group())
        return torch.cat(parts, dim=-1)[..., :size]

    def _rows(self, ids: Tensor, weight: Tensor, first: int) -> Tensor:
        """The embeddings (..., D) of ids: each is one process's, and the others add zeros."""
        own = ids - first
        is_here = (own >= 0) & (own < len(weight))
        found = weight.new_zeros((*ids.shape, weight.shape[1]))
        found[is_here] = weight[own[is_here]]
        distributed.all_reduce(found, group=self.mesh.get_group())
        return found


def shard_for_training(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over the `tp` dim of a mesh, and what is between its matrices by tokens.

    Before FSDP2 and before the optimizer. Logits are sharded by vocabulary: loss and backward run in `sharded_loss`.
    Every process passes the same model. Raises UsageError for sizes that tp does not divide, UnsupportedError for
    layers that are neither plain nor plain with one LoRA adapter, and for plans that do not go with this one.
    """
    _shard(model, mesh, TRAINING, Sharded)


def shard_for_writing(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over the `tp` dim of a mesh by columns alone, so that the logits keep one process's numbers.

    Every process runs the same passes and has all logits. Raises what `shard_for_training` raises.
    """
    _shard(model, mesh, WRITING, Columns)


@contextmanager
def sharded_loss(model: nn.Module) -> Iterator[None]:
    """Cross-entropy, forward and backward, of logits that a model shards by vocabulary, without gathering them.

    For a model that is not sharded so it changes nothing.
    """
    with loss_parallel() if Sharded.plan in plan.active(model) else nullcontext():
        yield


def placed(weight: Tensor, like: Tensor, *, dtype: torch.dtype, device: torch.device, copies: bool = False) -> Tensor:
    """A whole weight as a model wants it: this process's part of it where `like` is sharded, in a dtype on a device.

    The rest is not read: a weight in a file is mapped, and only the pages of the part are touched. copies: the part has
    memory of its own, as what is trained needs: checkpoints copy whole storages, and a view keeps the whole weight.
    """
    if not isinstance(like, DTensor):
        return weight.to(device=device, dtype=dtype)
    own = own_part(weight, like.device_mesh, like.placements).to(device=device, dtype=dtype, copy=copies)
    return _joined(own.contiguous(), like.device_mesh, like.placements, weight)


def own_part(weight: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """The part of a whole weight that this process of a mesh keeps, as a view."""
    cuts = [one for one in zip(placements, mesh.shape, _coordinate(mesh), strict=True) if hasattr(one[0], "dim")]
    # FSDP2 over tensor parallelism cuts what that has left (a _StridedShard), though its dim of the mesh comes first.
    for placement, size, at in sorted(cuts, key=lambda one: hasattr(one[0], "split_factor")):
        dim = cast("Shard", placement).dim
        length = weight.shape[dim]
        share = _share(length, size)
        start = min(at * share, length)
        weight = weight.narrow(dim, start, min(share, length - start))
    return weight


def _share(length: int, processes: int) -> int:
    """How much of a dim each process has, as DTensor cuts it; the last ones have less, or nothing."""
    return -(-length // processes)


def _coordinate(mesh: DeviceMesh) -> list[int]:
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "this process is in the mesh"
    return list(coordinate)


def _shard(model: nn.Module, mesh: DeviceMesh, table: Mapping[str, Part], kind: type[Sharded]) -> None:
    tp, config = mesh["tp"] if mesh.ndim > 1 else mesh, cast("CausalLM", model).config
    check_sizes(config, tp.size())
    found = dict(_parts(model, config, table))
    _check_kinds(model, found, with_adapters=kind is Sharded)
    stand_ins = [kind(module, part, tp) for module, part in found.items()]
    plan.apply(model, Sharded.plan, stand_ins, also=model.modules())
    inside = {one: part for module, part in found.items() for one in module.modules()}  # a layer and adapter in one
    _replace_parameters(model, lambda module, name, weight: _divided(inside.get(module), name, weight, tp))


def _joined(own: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], like: Tensor) -> DTensor:
    """The sharded tensor of the shape of a whole one, whose part here is `own`."""
    strides = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=like.shape, stride=strides)


def _divided(part: Part | None, name: str, weight: Tensor, mesh: DeviceMesh) -> Tensor:
    """A parameter as its part wants it; that of a module without a part stays whole."""
    if part is None:
        return weight
    placements = [part.of(name)]
    own = own_part(weight, mesh, placements).clone(memory_format=torch.contiguous_format)  # frees the whole weight
    return _joined(own, mesh, placements, weight)


def _replace_parameters(model: nn.Module, change: Callable[[nn.Module, str, Tensor], Tensor]) -> None:
    """Put other tensors in the places of all parameters."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            changed = change(module, name, weight.detach())
            setattr(module, name, nn.Parameter(changed, requires_grad=weight.requires_grad))
    cast("CausalLM", model).tie_weights()


def _parts(model: nn.Module, config: LlamaConfig, table: Mapping[str, Part]) -> Iterator[tuple[nn.Module, Part]]:
    """The modules that the table shards, and how. Raises UnsupportedError for a model that is not a plain causal LM."""
    if missing := next((name for name in AROUND.values() if not _has(model, name)), None):
        kind = type(model).__name__
        raise UnsupportedError(f"a {kind} has no {missing}, and tensor parallelism shards causal language models alone")
    for layer in cast("nn.ModuleList", model.get_submodule("model.layers")):
        parts = parts_of(layer, config, plan="tensor parallelism")
        modules: dict[str, Any] = {name: getattr(parts, name) for name in (*NORMS, *PRODUCTS)}
        yield from ((modules[name], part) for name, part in table.items() if name in modules)
    yield from ((model.get_submodule(name), table[part]) for part, name in AROUND.items() if part in table)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _check_kinds(model: nn.Module, modules: Collection[nn.Module], *, with_adapters: bool) -> None:
    for name, module in model.named_modules():
        is_plain = type(module) in (nn.Linear, nn.Embedding, LlamaRMSNorm)
        if module in modules and not is_plain and not (with_adapters and _is_adapted(module)):
            kind = type(module).__name__
            raise UnsupportedError(f"{name} is a {kind}, which tensor parallelism does not know: use the model without")


def _is_adapted(module: nn.Module) -> bool:
    """Whether a module is a product with a pair of plain matrices."""
    factors = factors_of(module)
    return factors is not None and factors.pair is not None and factors.weight is not None


def check_sizes(config: LlamaConfig, tp: int) -> None:
    """Raise UsageError where tp does not divide a model's heads or its feed-forward."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % tp:
            raise UsageError(
                f"tp is {tp}, and the model's {name} is {getattr(config, name)}, which {tp} does not divide: "
                "give a --tp that divides it"
            )
