"""Tensor parallelism: the matrices of a finished model over the `tp` dim of a mesh, by the tables of `placements`."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import loss_parallel

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model import plan
from llamita.model.factors import HasFactors
from llamita.model.layers import LlamaRMSNorm
from llamita.model.parts import NORMS, PRODUCTS, parts_of
from llamita.model.stored import StoredMatrix, StoredWeight
from llamita.parallel.placements import AROUND, BLOCKS, FEATURES, ROWS, TRAINING, WRITING, Part
from llamita.parallel.sharded_modules import Columns, Sharded, ShardedBlocks, replace_matrices, replace_parameters
from llamita.parallel.slices import joined, own_part, own_range


class CausalLM(Protocol):
    """What a model has besides modules."""

    config: LlamaConfig

    def tie_weights(self) -> None:
        """Make each tied weight the very tensor of its twin."""
        ...


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
    replace_parameters(model, lambda module, name, weight: _divided(inside.get(module), name, weight, tp))
    replace_matrices(model, lambda matrix: _own_matrix(matrix, tp))


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
