"""A model and its tokenizer, loaded by name: the one place that knows all kinds of names and files."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from llamita.checkpoint.gguf_names import is_gguf
from llamita.checkpoint.vocabulary import check_vocabulary
from llamita.config import LlamaConfig
from llamita.errors import NotFoundError, UsageError
from llamita.files.checkpoint import open_checkpoint
from llamita.files.disk import explained, named_path
from llamita.files.hub import is_gguf_name, resolve, resolve_gguf
from llamita.model.files import read_generation_config
from llamita.model.initial import shapes_only
from llamita.model.llama import LlamaForCausalLM
from llamita.model.loading import Seen, check_complete
from llamita.tokenizer.protocol import Tokenizer

EMBEDDED = "cria"
DTYPE_SYNONYMS = {
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
    "fp32": "float32", "f32": "float32", "float": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, the tokenizer that speaks its ids, and where they came from: a folder, or a GGUF file.

    adapter: the digest of the adapter that is merged into its weights, None without one.
    """

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    name: str
    folder: Path
    adapter: str | None = None


def load_pretrained(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    device_mesh: Any = None,
) -> Loaded:
    """A model and its tokenizer: "cria" or None for the embedded one, a folder, a .gguf file, or a name on the hub.

    Of a repository's GGUF files one is meant by its name or its quantization: org/name:file.gguf, org/name:Q4_K_M.
    dtype: "auto" is the checkpoint's own, and leaves the blocks of a GGUF file quantized; short names such as bf16 are
    understood.
    device_mesh: shard the model over the `tp` dim of these processes, see `LlamaForCausalLM.from_pretrained`.
    Raises NotFoundError, AccessError, BrokenFileError (damaged, or model and tokenizer do not belong together),
    UsageError (a dtype or device that is not there), UnsupportedError (quantized weights).
    """
    if str(device).partition(":")[0] == "meta":
        raise UsageError(f"device {str(device)!r} holds no weights to write with: use auto or cpu")
    folder = find(name, revision=revision, offline=offline)
    dtype = DTYPE_SYNONYMS.get(dtype.lower(), dtype.lower()) if isinstance(dtype, str) else dtype
    if is_gguf(folder):
        from llamita.checkpoint import gguf

        options: dict[str, Any] = {"dtype": dtype, "device": device, "attn_implementation": attn_implementation}
        if device_mesh is None:
            model, tokenizer = gguf.load_gguf(folder, **options)
        else:
            model, tokenizer = gguf.load_part(folder, device_mesh, **options)
        return Loaded(model, with_tokens(tokenizer, folder), str(name), folder)
    from llamita.tokenizer.load import load_tokenizer  # brings the tokenizers, which `find` alone has no need of

    config = LlamaConfig.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, config, folder)  # before the weights, which may be large
    check_weights(folder, config)
    model = LlamaForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        device_mesh=device_mesh,
    )
    return Loaded(model, tokenizer, str(name or EMBEDDED), folder)


def unread(
    name: str | Path, *, dtype: str, device: torch.device, offline: bool = False
) -> tuple[LlamaForCausalLM, Tokenizer, Callable[..., None]] | None:
    """A model without its weights, its tokenizer, and what reads them to a device once the model is sharded.

    That takes the model, and `seen` of `llamita.model.loading.fill`. The blocks of a GGUF file are dequantized, one
    matrix at a time. None for weights that another library quantized. Raises what `load_pretrained` raises.
    """
    folder = find(name, offline=offline)
    if is_gguf(folder):
        from llamita.checkpoint.gguf import unread_gguf

        model, words, weights = unread_gguf(folder, dtype=dtype)
        model.to(getattr(torch, dtype)).name_or_path = str(name)

        def dequantize(model: LlamaForCausalLM, seen: Seen | None = None) -> None:
            model.read_weights(weights, device=device, copies=True, seen=seen)

        return model, with_tokens(words, folder), dequantize
    from llamita.tokenizer.load import load_tokenizer

    config = LlamaConfig.from_pretrained(folder)
    if config.extra.get("quantization_config"):
        return None  # which `load_pretrained` refuses
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, config, folder)
    check_weights(folder, config)
    model = LlamaForCausalLM.without_weights(config.replace(dtype=dtype)).to(getattr(torch, dtype))
    model.name_or_path, model.generation_config = str(name), read_generation_config(folder, model.generation_config)

    def read(model: LlamaForCausalLM, seen: Seen | None = None) -> None:
        with open_checkpoint(folder) as tensors:
            model.read_weights(tensors, device=device, copies=True, seen=seen)

    return model, tokenizer, read


def check_weights(folder: Path, config: LlamaConfig) -> None:
    """Raise BrokenFileError where weights are missing, which `from_pretrained` lets start random, for training.

    Those that another library quantized have other names, and are refused where they are loaded.
    """
    if config.extra.get("quantization_config"):
        return
    with shapes_only():
        model = LlamaForCausalLM(config)
    with open_checkpoint(folder) as tensors:
        check_complete(model, tensors, tied=model.tied_weights, where=folder)


def find(name: str | Path | None = None, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder or the GGUF file of a model by its name, fetched from the hub where it has to be.

    Raises NotFoundError for one that is not there, or is not to be had offline, and AccessError.
    """
    if name is None or str(name) == EMBEDDED:
        return _embedded()
    if is_gguf_name(str(name)):
        return resolve_gguf(str(name), revision=revision, offline=offline)
    path = named_path(name)
    if is_gguf(path) and not path.is_dir():
        with explained("read", path):
            path.stat()
        return path
    folder = resolve(str(name), revision=revision, offline=offline)
    if folder != path and not (folder / "config.json").is_file():
        raise NotFoundError(
            f"{name} has no config.json on the hub: where its models are GGUF files, name one, such as {name}:Q4_K_M"
        )
    return folder


def _embedded() -> Path:
    folder = Path(str(files("llamita"))) / EMBEDDED
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            "the embedded model cria is not in this installation: install llamita again, or name a model"
        )
    return folder


def with_tokens(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    """The tokenizer; raises NotFoundError for a GGUF file that holds none."""
    if tokenizer is None:
        raise NotFoundError(f"{path} holds a model without a tokenizer: take a file that has one")
    return tokenizer
