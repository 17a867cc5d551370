"""A recipe from values by name: those of a TOML file, and of the options that overrule it."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from llamita.checks import quoted, remedy
from llamita.errors import BrokenFileError, UsageError
from llamita.files.disk import read_text
from llamita.train.recipe import Recipe


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe file, not yet checked. Raises BrokenFileError, UsageError for a name that is none."""
    try:
        values = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise BrokenFileError(f"{path} is not valid TOML ({error}): mend it") from error
    return values


KINDS: Mapping[type, str] = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list of files' names",
}  # fmt: skip
# What to do -> names of other trainers' settings.
HABITS: Mapping[str, tuple[str, ...]] = {
    "write lr": ("learning_rate", "rate"),
    "write steps": ("max_steps", "num_steps", "iters", "max_iters", "step"),
    "say how long by minutes or steps": ("epochs", "num_train_epochs", "num_epochs"),
    "write length": ("seq_len", "seq_length", "max_seq_length", "max_length", "block_size", "context_length"),
    "write batch_tokens": ("batch_size", "batch", "per_device_train_batch_size"),
    "write warmup, a share of the steps": ("warmup_steps", "warmup_ratio"),
    "write clip": ("grad_clip", "max_grad_norm", "clip_grad_norm"),
    "write rank": ("r", "lora_r", "lora_rank"),
    "write alpha": ("lora_alpha",),
    "write targets": ("target_modules",),
    "the folder is said by -o on the command line": ("output", "output_dir", "out"),
}


def make_recipe(values: Mapping[str, Any], *, source: str = "the recipe") -> Recipe:
    """A recipe of values by name. Raises UsageError for an unknown name, a wrong type or an impossible value."""
    known = {field.name: field for field in fields(Recipe)}
    for name, value in values.items():
        if isinstance(value, Mapping):
            raise UsageError(f"{source} has the table {quoted(name)}: settings stand outside of tables")
        if name not in known:
            raise UsageError(f"{source} has {quoted(name)}, which is no setting{remedy(name, HABITS, known)}")
        wanted = _types(known[name].type)
        if isinstance(value, bool) != (wanted == (bool,)) or not isinstance(value, wanted):
            raise UsageError(f"{name} in {source} is {quoted(value)}: it must be {KINDS[wanted[0]]}")
        if name == "data" and (wrong := [one for one in value if not isinstance(one, str | Path)]):
            raise UsageError(f"data in {source} has {quoted(wrong[0])}: it must be {KINDS[list]}")
    given: dict[str, Any] = {name: tuple(value) if name == "data" else value for name, value in values.items()}
    return Recipe(**given)


def _types(annotation: Any) -> tuple[type, ...]:
    """What a value may be; a whole number is a float too."""
    if get_origin(annotation) is tuple:
        return (list, tuple)
    kinds = tuple(kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType)
    return (*kinds, int) if float in kinds else kinds
