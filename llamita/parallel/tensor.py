"""Tensor parallelism: the matrices of a finished model over the `tp` dim of a mesh, by a table of placements.

For training, Megatron's cut (arXiv:1909.08053): q, k, v, gate and up by columns, o and down by rows, the embedding, the
head and the loss by vocabulary; between them each process keeps a part of the sequence (arXiv:2205.05198). For writing,
all matrices by columns, so that no sum is cut and every number is computed as one process computes it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.factors import HasFactors
from llamita.model.layers import LlamaRMSNorm
from llamita.model.parts import NORMS, PRODUCTS, parts_of
from llamita.model.stored import StoredMatrix, StoredWeight
from llamita.parallel.shard import whole
from llamita.parallel.slices import joined, own_part, own_range, share_of

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
        """How a parameter of this name is sharded: a bias, and those of adapters, with the sides of the weight."""
        outputs = ROWS if self.weight == ROWS else WHOLE
        inputs = WHOLE if self.weight == ROWS else self.weight
        return {"bias": outputs, "A": inputs, "B": outputs, "magnitude": outputs}.get(name, self.weight)


COLUMNS = Part(ROWS, gives=FEATURES, is_local=True)
_BY_ROWS = Part(Shard(1), comes=FEATURES, reads=FEATURES, gives=TOKENS)
_NORM = Part(WHOLE, comes=TOKENS, reads=TOKENS)
_GATHERED = Part(ROWS, comes=FEATURES, is_local=True)

# The parts around the layers, in a causal LM.
AROUND = {"embedding": "model.embed_tokens", "last_norm": "model.norm", "head": "lm_head"}
# Each part, by the names of `llamita.model.parts` and of `AROUND`.
TRAINING: dict[str, Part] = {
    "embedding": Part(ROWS, gives=TOKENS),
    **dict.fromkeys(NORMS, _NORM),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), COLUMNS),
    **dict.fromkeys(("o", "down"), _BY_ROWS),
    "last_norm": Part(WHOLE, comes=TOKENS, reads=TOKENS, is_local=True),
    "head": Part(ROWS, gives=FEATURES),
}
# Of weights in blocks: all by columns, which cuts no block, and no sum of a forward pass.
BLOCKS: Mapping[str, Part] = TRAINING | dict.fromkeys(("o", "down"), Part(ROWS, comes=FEATURES, gives=TOKENS))
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
        _replace_matrices(model, self._whole_matrix)

    def _whole_matrix(self, own: StoredMatrix) -> StoredMatrix:
        parts = [own.stored_tensors()] * self.processes
        distributed.all_gather_object(parts, own.stored_tensors(), group=self.mesh.get_group())
        return own.joined(parts)


class ShardedBlocks(Sharded):
    """The forward of a layer or an embedding in blocks, of whose weight (N, K) this process has some of the rows."""

    def __init__(self, module: nn.Module, part: Part, mesh: DeviceMesh) -> None:
        super().__init__(module, part, mesh)
        self.rows = cast("StoredWeight[StoredMatrix]", module).matrix.shape[0]

    def plain(self, x: DTensor) -> DTensor:
        """The products (..., N) with x (..., K), or the embeddings (..., D) of ids (...)."""
        own = x.to_local(grad_placements=[Partial()])  # each process has a gradient of its own outputs: they are summed
        if not hasattr(self.module, "in_features"):
            return DTensor.from_local(self._embeddings(own), self.mesh, [Partial()], run_check=False)
        return joined(super().plain(own), self.mesh, [FEATURES], (*x.shape[:-1], self.rows))

    def _embeddings(self, ids: Tensor) -> Tensor:
        """What this process adds to the embeddings of ids: zeros where another one has them."""
        own = own_range(self.rows, self.mesh.get_local_rank(), self.processes)
        found = super().plain((ids - own.start).clamp(0, len(own) - 1))
        is_here = (ids >= own.start) & (ids < own.stop)
        return torch.where(is_here[..., None], found, 0)


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
                x, weight.to_local(), first=self.mesh.get_local_rank() * share_of(weight.shape[0], self.processes)
            )
        if self.part.comes == FEATURES:
            x = self._gathered(x, weight.shape[1])
        bias = None if module.bias is None else cast("DTensor", module.bias).to_local()
        out = functional.linear(x, weight.to_local(), bias)
        return out if self.part.gives == FEATURES else self._gathered(out, weight.shape[0])

    def _gathered(self, own: Tensor, size: int) -> Tensor:
        """All features (..., size) of which this process has its part; the last processes may have fewer."""
        share = share_of(size, self.processes)
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
    Layers may have adapters, and weights in blocks. Every process passes the same model. Raises UsageError for sizes
    that tp does not divide, UnsupportedError for other layers, adapters that are merged or drop inputs, and for plans
    that do not go with this one.
    """
    _shard(model, mesh, TRAINING, _for_training, _is_trainable)


def shard_for_writing(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over the `tp` dim of a mesh by columns alone, so that the logits keep one process's numbers.

    Every process runs the same passes and has all logits. Raises what `shard_for_training` raises.
    """
    _shard(model, mesh, WRITING, _for_writing, _is_plain)


@contextmanager
def sharded_loss(model: nn.Module) -> Iterator[None]:
    """Cross-entropy, forward and backward, of logits that a model shards by vocabulary, without gathering them.

    For a model that is not sharded so it changes nothing.
    """
    with loss_parallel() if Sharded.plan in plan.active(model) else nullcontext():
        yield


def _shard(
    model: nn.Module,
    mesh: DeviceMesh,
    table: Mapping[str, Part],
    build: Callable[[nn.Module, str, DeviceMesh], Iterable[Sharded]],
    is_known: Callable[[nn.Module], bool],
) -> None:
    tp, config = mesh["tp"] if mesh.ndim > 1 else mesh, cast("CausalLM", model).config
    check_sizes(config, tp.size())
    found = dict(_parts(model, config, table))
    _check_kinds(model, found, is_known)
    stand_ins = [one for module, name in found.items() for one in build(module, name, tp)]
    plan.apply(model, Sharded.plan, stand_ins, also=model.modules())
    inside = {one: made.part for made in stand_ins for one in made.module.modules()}  # a layer and adapters in one
    _replace_parameters(model, lambda module, name, weight: _divided(inside.get(module), name, weight, tp))
    _replace_matrices(model, lambda matrix: _own_matrix(matrix, tp))


def _for_writing(module: nn.Module, name: str, mesh: DeviceMesh) -> Iterable[Sharded]:
    return [Columns(module, WRITING[name], mesh)]


def _for_training(module: nn.Module, name: str, mesh: DeviceMesh) -> Iterable[Sharded]:
    """The stand-ins for a part; blocks that have adapters are a part in it."""
    base = _base_of(module)
    if not isinstance(base, StoredWeight):
        return [Sharded(module, TRAINING[name], mesh)]
    if base is module:
        return [ShardedBlocks(module, BLOCKS[name], mesh)]
    return [Sharded(module, BLOCKS[name], mesh), ShardedBlocks(base, Part(ROWS, gives=FEATURES), mesh)]


def _base_of(module: nn.Module) -> nn.Module:
    """The layer itself, or the one that its adapters adapt."""
    return module.base_layer if isinstance(module, HasFactors) else module


def _own_matrix(matrix: StoredMatrix, mesh: DeviceMesh) -> StoredMatrix:
    own = own_range(matrix.shape[0], mesh.get_local_rank(), mesh.size())
    return matrix.part(own.start, own.stop)


def _divided(part: Part | None, name: str, weight: Tensor, mesh: DeviceMesh) -> Tensor:
    """A parameter as its part wants it; that of a module without a part stays whole."""
    if part is None:
        return weight
    placements = [part.of(name)]
    own = own_part(weight, mesh, placements).clone(memory_format=torch.contiguous_format)  # frees the whole weight
    return joined(own, mesh, placements, weight.shape)


def _replace_parameters(model: nn.Module, change: Callable[[nn.Module, str, Tensor], Tensor]) -> None:
    """Put other tensors in the places of all parameters; modules that share one share the new one too."""
    made = WeakIdKeyDictionary()
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight not in made:
                made[weight] = nn.Parameter(change(module, name, weight.detach()), weight.requires_grad)
            setattr(module, name, made[weight])


def _replace_matrices(model: nn.Module, change: Callable[[StoredMatrix], StoredMatrix]) -> None:
    """Put other matrices in the places of all that modules store; tied ones share the new one too."""
    made = WeakIdKeyDictionary()
    for module in model.modules():
        if isinstance(module, StoredWeight):
            matrix = cast("StoredMatrix", module.matrix)
            if matrix not in made:
                made[matrix] = change(matrix)
            module.matrix = made[matrix]


def _parts(model: nn.Module, config: LlamaConfig, table: Mapping[str, Part]) -> Iterator[tuple[nn.Module, str]]:
    """The modules that the table shards, and its row. Raises UnsupportedError for one that is not a plain causal LM."""
    if missing := next((name for name in AROUND.values() if not _has(model, name)), None):
        kind = type(model).__name__
        raise UnsupportedError(f"a {kind} has no {missing}, and tensor parallelism shards causal language models alone")
    for layer in cast("nn.ModuleList", model.get_submodule("model.layers")):
        parts = parts_of(layer, config, plan="tensor parallelism")
        modules: dict[str, Any] = {name: getattr(parts, name) for name in (*NORMS, *PRODUCTS)}
        yield from ((modules[name], name) for name in table if name in modules)
    yield from ((model.get_submodule(name), part) for part, name in AROUND.items() if part in table)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _check_kinds(model: nn.Module, modules: Collection[nn.Module], is_known: Callable[[nn.Module], bool]) -> None:
    for name, module in model.named_modules():
        if module in modules and not is_known(module):
            kind = type(module).__name__
            raise UnsupportedError(f"{name} is a {kind}, which tensor parallelism does not know: use the model without")


def _is_plain(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, nn.Embedding, LlamaRMSNorm)


def _is_trainable(module: nn.Module) -> bool:
    """Whether a module is plain or in blocks, with adapters that are sums or without."""
    base = _base_of(module)
    is_blocks = isinstance(base, StoredWeight) and getattr(base, "bias", None) is None
    return (_is_plain(base) or is_blocks) and (not isinstance(module, HasFactors) or module.is_sum())


def check_sizes(config: LlamaConfig, tp: int) -> None:
    """Raise UsageError where tp does not divide a model's heads or its feed-forward."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % tp:
            raise UsageError(
                f"tp is {tp}, and the model's {name} is {getattr(config, name)}, which {tp} does not divide: "
                "give a --tp that divides it"
            )
