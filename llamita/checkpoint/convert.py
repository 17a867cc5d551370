"""From any form that a model is kept in to a GGUF file or a Hugging Face folder."""

from pathlib import Path

import torch

from llamita.checkpoint.gguf_names import is_gguf
from llamita.checkpoint.gguf_save import known_format, save_gguf
from llamita.checkpoint.load import Loaded, load_pretrained
from llamita.checkpoint.target import checked_target
from llamita.errors import UsageError
from llamita.files.gguf_types import PLAIN
from llamita.quant.surgery import is_quantized
from llamita.tokenizer.save import save_tokenizer


def convert(
    name: str | Path | None,
    output: str | Path,
    *,
    format: str | None = None,
    offline: bool = False,
    force: bool = False,
) -> Path:
    """Write the model of a name, as `load_pretrained` knows them, to `output`; returns it.

    output: a name that ends in .gguf is a GGUF file, any other a Hugging Face folder.
    format: f32, f16, bf16, or for a GGUF file a recipe such as q8_0 or q4_k_m; None keeps every number as it is, but
    for the blocks of a GGUF file in a folder, which become f32. force: replace a file, or the checkpoint in a folder.
    Raises UsageError for a format that the output cannot have and for what is there already, NotFoundError where the
    folder around the output is not there, and what loading and saving raise.
    """
    format = known_format(format)
    output = checked_target(output, name, force=force)
    if is_gguf(output):
        loaded = load_pretrained(name, device="cpu", offline=offline)
        return save_gguf(loaded.model, loaded.tokenizer, output, format)
    if format not in (None, *PLAIN):
        raise UsageError(
            f"a folder of safetensors cannot hold {format}: choose f32, f16 or bf16, or write a .gguf file"
        )
    return save_folder(_plain(name, format, offline), output)


def save_folder(loaded: Loaded, folder: Path) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder, in the place of one that is there; returns it."""
    loaded.model.save_pretrained(folder)
    if not loaded.model.generation_config:
        (folder / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(loaded.tokenizer, folder, max_length=loaded.model.config.max_position_embeddings)
    return folder


def _plain(name: str | Path | None, format: str | None, offline: bool) -> Loaded:
    """The model in plain numbers, in the dtype of the format or in its own."""
    if format is not None:
        return load_pretrained(name, dtype=PLAIN[format], device="cpu", offline=offline)
    loaded = load_pretrained(name, device="cpu", offline=offline)
    if not is_quantized(loaded.model):
        return loaded
    return load_pretrained(name, dtype=torch.float32, device="cpu", offline=offline)
