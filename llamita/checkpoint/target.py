"""Where a model is to be written: looked at before any work, so that nothing is lost and no typo makes a folder."""

from collections.abc import Iterator
from pathlib import Path

from llamita.checkpoint.gguf_names import is_gguf
from llamita.errors import NotFoundError, UsageError
from llamita.files.disk import explained, named_path

# What a checkpoint's folder is known by, and what is counted of it.
NAMES = (
    "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json",
    "chat_template.jinja", "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*",
)  # fmt: skip
# Endings of files that are not written, and .gguf misspelled: no folder is meant by such a name.
NO_FOLDERS = (".safetensors", ".bin", ".pt", ".pth", ".ggml", ".onnx", ".gguff", ".ggu", ".guff", ".gugf", ".gfuf")


def checked_target(output: str | Path, source: str | Path | None = None, *, force: bool = False) -> Path:
    """The path of an output, where a model may be written: a name that ends in .gguf is a file, any other a folder.

    source: what the model is read from, as it was named. force: replace what is there, the source too.
    Raises UsageError for what exists or is no name, NotFoundError where the folder around it does not exist.
    """
    if str(output).strip() in ("", "-"):
        raise UsageError(f"the output is {str(output)!r}: name a file that ends in .gguf, or a folder")
    path = named_path(output)
    with explained("write", path):
        if not path.parent.is_dir():
            raise NotFoundError(f"cannot write {path}: there is no folder {path.parent}, make it or check the path")
        _check_kind(path)
        if not force and _is_taken(path):
            there = "is there already" if is_gguf(path) else "holds a model already"
            what = "is the model that is read" if _is_source(path, source) else there
            raise UsageError(f"{path} {what}: choose another name, or replace it with --force")
    return path


def checkpoint_files(folder: Path) -> Iterator[Path]:
    """The files of a Hugging Face checkpoint in a folder, whatever else is there."""
    return (path for name in NAMES for path in folder.glob(name) if path.is_file())


def _check_kind(path: Path) -> None:
    if path.suffix.lower() in NO_FOLDERS and not path.is_dir():
        raise UsageError(f"{path} ends in {path.suffix}: name a file that ends in .gguf, or a folder for safetensors")
    if is_gguf(path) and path.is_dir():
        raise UsageError(f"{path} is a folder, and a name that ends in .gguf is a file's: choose another name")
    if not is_gguf(path) and path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: give a folder, or a name that ends in .gguf")


def _is_taken(path: Path) -> bool:
    return path.is_symlink() or path.exists() if is_gguf(path) else any(checkpoint_files(path))


def _is_source(path: Path, source: str | Path | None) -> bool:
    origin = None if source is None else named_path(source)
    return origin is not None and origin.exists() and path.exists() and origin.samefile(path)
