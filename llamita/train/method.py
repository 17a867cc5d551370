"""Which weights a run trains: all of them, or an adapter of frozen ones (LoRA, DoRA, QLoRA)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llamita.adapters.config import LoraConfig
from llamita.adapters.files import load_adapter, save_adapter
from llamita.adapters.lora import add_lora, merge_and_unload, targets
from llamita.adapters.pair import sides
from llamita.adapters.unread import first_values, taken_off
from llamita.checkpoint.load import load_pretrained
from llamita.errors import UsageError
from llamita.model.fingerprint import UnreadFingerprint, fingerprint
from llamita.model.llama import LlamaForCausalLM
from llamita.parallel.mesh import gathered
from llamita.quant.surgery import is_quantized, quantize
from llamita.tokenizer.save import save_tokenizer

MERGED = "merged"  # the folder of the model with the adapter in its weights, in the folder of the adapter


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained. use_dora: the adapter has magnitudes too. is_quantized: the frozen weights are in blocks."""

    is_adapter: bool = False
    use_dora: bool = False
    is_quantized: bool = False


METHODS: Mapping[str, Method] = {
    "full": Method(),
    "lora": Method(is_adapter=True),
    "dora": Method(is_adapter=True, use_dora=True),
    "qlora": Method(is_adapter=True, is_quantized=True),
}


def adapt(model: LlamaForCausalLM, config: LoraConfig, *, block_format: str | None, seed: int) -> str:
    """Freeze a model, quantized first where a format is given, and add an adapter; returns the base's fingerprint.

    The first values of the adapter are the seed's. Raises what `add_lora` and `quantize` do.
    """
    if block_format is not None:
        quantize(model, block_format)
    base = fingerprint(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_lora(model, config)
    return base


def adapt_unread(
    model: LlamaForCausalLM, config: LoraConfig, read: Callable[..., None], *, seed: int, device: torch.device
) -> Callable[[LlamaForCausalLM], Callable[[], str]]:
    """Must equal `adapt` of a model whose weights are still to come: what reads those of this process.

    That returns what all processes do together once they have read: it gives the adapter its first values, and returns
    the fingerprint. read: gives the plain model its weights, see `llamita.checkpoint.load.unread`. The model may be
    sharded, or cut into stages, in between.
    """
    base = UnreadFingerprint(model)
    add_lora(model, config)

    def read_base(model: LlamaForCausalLM) -> Callable[[], str]:
        with taken_off(model):
            read(model, seen=base.seen)

        def finish() -> str:
            first_values(model, config, seed=seed, device=device)
            return base.value(gathered(base.samples))

        return finish

    return read_base


def check_rank(model: LlamaForCausalLM, config: LoraConfig) -> None:
    """Raise UsageError for a rank beyond both sides of a layer's matrix, which adds numbers and nothing to learn."""
    for name in targets(model, config):
        columns, rows = sides(model.get_submodule(name))
        if config.rank(name) > max(rows, columns):
            raise UsageError(
                f"rank is {config.rank(name)}, and {name} is a matrix of {rows} by {columns}: give at most "
                f"{max(rows, columns)}"
            )


def check_merges(model: LlamaForCausalLM, config: LoraConfig) -> None:
    """Raise UsageError where an adapter of this config could not be merged into the plain model once it is trained."""
    tied = {name.removesuffix(".weight") for pair in model.tied_weights.items() for name in pair}
    if shared := next((name for name in targets(model, config) if name in tied), None):
        raise UsageError(
            f"{shared} shares its weight with another layer, which merging would change: leave it out of the targets, "
            "or --merge out"
        )


def whole_model(model: LlamaForCausalLM, config: LoraConfig) -> LlamaForCausalLM:
    """A model on the meta device with all layers of one, of which this process may have a stage, and its adapter."""
    found = LlamaForCausalLM.without_weights(model.config)
    found.name_or_path = model.name_or_path
    add_lora(found, config)
    return found


def export_adapter(
    model: LlamaForCausalLM, folder: Path, *, weights: Mapping[str, Tensor], base: str, merge: bool
) -> None:
    """Write the adapter as peft does. merge: also write the base with the adapter in its weights, to MERGED.

    weights: those that are trained, whole, by name.

    The base is read again for that: quantized weights would be rounded once more, and the model here goes on training.
    """
    save_adapter(model, folder, weights=weights)
    if merge:
        loaded = load_pretrained(base)
        if is_quantized(loaded.model):  # by a GGUF file; a folder holds no blocks
            loaded = load_pretrained(base, dtype=loaded.model.dtype)
        load_adapter(loaded.model, folder)
        merge_and_unload(loaded.model)
        loaded.model.save_pretrained(folder / MERGED)
        save_tokenizer(loaded.tokenizer, folder / MERGED, max_length=loaded.model.config.max_position_embeddings)
