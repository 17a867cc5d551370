"""A model and its tokenizer from a GGUF file; blocks stay blocks."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamita.checkpoint.gguf_config import config_from_gguf, generation_from_gguf
from llamita.checkpoint.gguf_names import FREQUENCY_FACTORS, from_gguf, halved, halved_order, heads_of
from llamita.checkpoint.vocabulary import check_vocabulary
from llamita.config import LlamaConfig
from llamita.errors import BrokenFileError, UnsupportedError
from llamita.files.gguf_split import Gguf, open_gguf
from llamita.files.gguf_types import PLAIN
from llamita.kernels.blocks import FORMATS
from llamita.model.llama import LlamaForCausalLM
from llamita.model.loading import LoadReport, few
from llamita.model.pretrained import chosen_device, chosen_dtype
from llamita.model.rope import LlamaRotaryEmbedding
from llamita.tokenizer.gguf import tokenizer_from_gguf
from llamita.tokenizer.protocol import Tokenizer


class GgufTensors:
    """A GGUF file's weights under our names, queries and keys in our order; otherwise a checkpoint like others.

    Raises UnsupportedError for a weight in a storage that llamita does not read.
    """

    def __init__(self, file: Gguf, config: LlamaConfig) -> None:
        self._file, self._config = file, config
        named = {name: from_gguf(name) for name in file.names if name != FREQUENCY_FACTORS}
        self._names = {ours: theirs for theirs, ours in named.items() if ours is not None}
        self.strangers = [theirs for theirs, ours in named.items() if ours is None]  # of no Llama, and never read
        for theirs in self._names.values():
            storage = file.entry(theirs).storage
            if storage not in (*PLAIN, *FORMATS):
                known = ", ".join([*PLAIN, *FORMATS])
                raise UnsupportedError(f"{file.paths[0]}: tensor {theirs} is stored as {storage}: known are {known}")

    @property
    def names(self) -> list[str]:
        """The weights' names."""
        return list(self._names)

    @property
    def paths(self) -> list[Path]:
        """The files that hold them."""
        return self._file.paths

    def storage(self, name: str) -> str:
        """How a weight is stored: f32, q4_k, ..."""
        return self._file.entry(self._names[name]).storage

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one weight."""
        return self._file.entry(self._names[name]).shape

    def is_in_blocks(self, name: str) -> bool:
        """Whether a weight is stored in blocks that share a scale."""
        return name in self._names and self.storage(name) in FORMATS

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which `load` gives one weight: fp32 for blocks."""
        return torch.float32 if self.is_in_blocks(name) else PLAIN[self.storage(name)]

    def load(self, name: str) -> Tensor:
        """One weight: plain numbers share the file's pages, but for queries and keys; blocks are dequantized."""
        rows = halved(self._file.load(self._names[name]), heads_of(name, self._config))
        storage = self.storage(name)
        return FORMATS[storage].dequantize(rows) if storage in FORMATS else rows

    def stored(self, name: str) -> tuple[Tensor, Tensor | None]:
        """One weight as it is stored, uint8 (N, bytes of a row), and the order of its rows that is ours, or None."""
        rows, heads = self._file.load(self._names[name]), heads_of(name, self._config)
        return rows, None if heads is None else halved_order(rows.shape[0], heads)

    def release(self, name: str) -> None:
        """Give back the memory of a weight's pages, once it was copied."""
        self._file.release(self._names[name])

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> "GgufTensors":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_model(path: Path) -> tuple[LlamaConfig, Tokenizer | None, GgufTensors, dict[str, object]]:
    """What a GGUF file holds, no weight read: config, tokenizer, weights, and a generation_config.json's content.

    The tokenizer is None where the file says that it has none.

    Raises NotFoundError, AccessError, BrokenFileError, UnsupportedError (another architecture, storage or tokenizer).
    """
    file = open_gguf(path)
    has_tokens = file.value("tokenizer.ggml.model", "none") not in ("none", "no_vocab")
    tokenizer = tokenizer_from_gguf(file.metadata, path) if has_tokens else None
    config = config_from_gguf(file, tokenizer)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, path)
    return config, tokenizer, GgufTensors(file, config), generation_from_gguf(file.metadata, config)


def load_gguf(
    path: Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
) -> tuple[LlamaForCausalLM, Tokenizer | None]:
    """The model and the tokenizer of a GGUF file; None where it has no tokenizer.

    dtype: "auto" leaves every weight as it is stored, blocks as quantized layers; any other dequantizes.
    Plain weights share the file's pages where the dtype fits; queries and keys are put into our order, a copy.
    Raises what `open_model` raises, BrokenFileError for weights that are missing or of the wrong shape, and UsageError.
    """
    model, tokenizer, tensors = unread_gguf(path, dtype=dtype, attn_implementation=attn_implementation)
    wanted = [name for name, _ in model.named_parameters()]
    blocks = [name for name in wanted if str(dtype) == "auto" and tensors.is_in_blocks(name)]
    _fill(model, tensors, blocks, chosen_device(device))
    unexpected = [name for name in tensors if name not in wanted]
    model.load_report = LoadReport(unexpected_keys=[*unexpected, *tensors.strangers])
    if str(model.load_report):
        warnings.warn(f"loading {path}: {model.load_report}", stacklevel=3)
    return model, tokenizer


def unread_gguf(
    path: Path, *, dtype: str | torch.dtype = "auto", attn_implementation: str | None = None
) -> tuple[LlamaForCausalLM, Tokenizer | None, GgufTensors]:
    """A model on the meta device, its tokenizer, and its weights, once the header says that all are there.

    `model.read_weights` may read them once the model is sharded: blocks are then dequantized, one matrix at a time.
    Raises what `load_gguf` raises.
    """
    config, tokenizer, tensors, generation = open_model(path)
    config = config.replace(dtype=chosen_dtype(dtype, config, tensors))
    if attn_implementation is not None:
        config = config.replace(attn_implementation=attn_implementation)
    model = LlamaForCausalLM.without_weights(config)
    _check(model, tensors)
    model.generation_config = generation
    return model, tokenizer, tensors


def load_part(
    path: Path,
    device_mesh: Any,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device,
    attn_implementation: str | None,
) -> tuple[LlamaForCausalLM, Tokenizer | None]:
    """A model that the processes of a mesh share to write: each dequantizes and keeps its own part.

    Raises UnsupportedError where blocks would stay blocks, and what `load_gguf` raises.
    """
    from llamita.parallel.tensor import shard_for_writing

    model, tokenizer, tensors = unread_gguf(path, dtype=dtype, attn_implementation=attn_implementation)
    if str(dtype) == "auto" and any(tensors.is_in_blocks(name) for name in tensors):
        raise UnsupportedError(
            f"{path} has weights in blocks, which processes do not share: give a --dtype, such as bfloat16, to "
            "dequantize them"
        )
    shard_for_writing(model, device_mesh)
    model.read_weights(tensors, device=chosen_device(device), copies=True)
    return model.eval(), tokenizer


def _check(model: LlamaForCausalLM, tensors: GgufTensors) -> None:
    """Check by the header that the file has all of the model's weights, in their shapes and in dtypes we can read."""
    source, wanted = tensors.paths[0], dict(model.named_parameters())
    missing = [name for name in wanted if name not in tensors and not _is_zero(name, tensors)]
    if missing:
        raise BrokenFileError(f"{source} is incomplete: it has no weights for {few(missing)}; download it again")
    for name, parameter in wanted.items():
        if name in tensors and tensors.shape(name) != tuple(parameter.shape):
            raise BrokenFileError(
                f"{source} says that {name} is {tuple(parameter.shape)}, and holds {tensors.shape(name)}: "
                "download it again"
            )
        if name in tensors and parameter.ndim == 1 and tensors.is_in_blocks(name):
            raise UnsupportedError(
                f"{source}: {name} is stored as {tensors.storage(name)}: norms and biases are read as f32, f16 or bf16"
            )
    stray = [name for name in tensors if name.endswith(".bias") and name not in wanted]
    if stray:
        raise UnsupportedError(f"{source} has biases that no Llama adds: {few(stray)}")


def _is_zero(name: str, tensors: GgufTensors) -> bool:
    """Whether a weight is a bias that no layer of the file has: some models have biases on q, k and v alone."""
    kind = name.partition("layers.")[2].partition(".")[2]
    return name.endswith(".bias") and not any(other.endswith(kind) for other in tensors)


def _fill(model: LlamaForCausalLM, tensors: GgufTensors, blocks: list[str], device: torch.device) -> None:
    """Give a model on the meta device its weights: blocks as quantized layers, the rest as parameters."""
    if blocks:
        _put_blocks(model, tensors, blocks, device)
    dtype = getattr(torch, str(model.config.dtype))
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        weight = tensors.load(name) if name in tensors else torch.zeros(parameter.shape, device="cpu")
        _check_loaded(name, tuple(weight.shape), tuple(parameter.shape), tensors)
        model.get_submodule(owner).register_parameter(leaf, nn.Parameter(weight.to(device=device, dtype=dtype)))
    if not any(source in blocks for source in model.tied_weights.values()):
        model.tie_weights()
    for module in model.modules():
        if isinstance(module, LlamaRotaryEmbedding):
            module.reset(device)
    if blocks:
        from llamita.quant.surgery import freeze

        freeze(model.to(device))
    model.eval()


def _put_blocks(model: LlamaForCausalLM, tensors: GgufTensors, names: list[str], device: torch.device) -> None:
    from llamita.quant.block_matrix import from_raw
    from llamita.quant.surgery import put  # with the kernels, whose compiler is dear to load

    for name in names:
        twins = [twin for twin, source in model.tied_weights.items() if source == name]
        modules = tuple(one.removesuffix(".weight") for one in (name, *twins))
        raw, order = tensors.stored(name)  # put in the device's order there, not in the CPU's here
        order = None if order is None else order.to(device)
        matrix = from_raw(tensors.storage(name), raw.to(device), order)
        _check_loaded(name, matrix.shape, tuple(model.get_parameter(name).shape), tensors)
        put(model, modules, matrix)
        tensors.release(name)


def _check_loaded(name: str, shape: tuple[int, ...], expected: tuple[int, ...], tensors: GgufTensors) -> None:
    """That a weight as it was loaded has its place's shape: kernels are given its address and that shape."""
    if shape != expected:
        raise BrokenFileError(
            f"{tensors.paths[0]}: {name} is loaded as {shape}, and not as {expected}: download it again"
        )
