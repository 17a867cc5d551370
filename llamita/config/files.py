"""A config as text and as a file: config.json, and what transformers' users call it by."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from llamita import checks
from llamita.errors import AccessError, BrokenFileError, LlamitaError, NotFoundError, UnsupportedError


class ConfigFiles(ABC):
    """Reading and writing of a config that can be made from a dictionary and turned into one."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """The config of the object of a config.json."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The object of a config.json."""

    @abstractmethod
    def to_diff_dict(self) -> dict[str, Any]:
        """What of it is not as usual."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """Read `folder/config.json`, with some fields changed.

        Raises NotFoundError without such a file, BrokenFileError when it is not a JSON object.
        """
        return cls.from_dict(cls.get_config_dict(folder)[0], **changes)

    @classmethod
    def get_config_dict(cls, folder: str | Path, **others: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The object of `folder/config.json`, and what else was given, as transformers; raises as `from_pretrained`."""
        return _read(Path(folder) / "config.json", folder), others

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Read a config from a file of any name; raises what `from_pretrained` does."""
        return cls.from_dict(_read(Path(json_file), json_file))

    def save_pretrained(self, folder: str | Path, push_to_hub: bool = False) -> None:
        """Write `folder/config.json`, replacing it in one step."""
        refuse_upload(push_to_hub)
        self.to_json_file(Path(folder) / "config.json", use_diff=False)

    def to_json_string(self, use_diff: bool = True) -> str:
        """The config as JSON: with `use_diff` only what is not as usual."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        values.pop("_name_or_path", None)  # where a model came from is no part of its copy
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write `to_json_string` to a file, replacing it in one step."""
        path = Path(json_file_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        try:
            fresh.write_text(self.to_json_string(use_diff), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            kind = AccessError if isinstance(error, PermissionError) else LlamitaError
            is_folder = isinstance(error, IsADirectoryError)
            why = "it is a folder, name a file" if is_folder else (error.strerror or str(error)).lower()
            raise kind(f"cannot write {path}: {why}") from error


def refuse_upload(push_to_hub: bool) -> None:
    """Raise UnsupportedError where a save was to upload, too."""
    if push_to_hub:
        raise UnsupportedError("llamita uploads nothing: save to a folder, then `hf upload organisation/name folder`")


def _read(path: Path, named: str | Path) -> dict[str, Any]:
    try:
        values = checks.parsed_json(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        what = f"{named} has no config.json" if path.name == "config.json" else f"there is no file {named}"
        raise NotFoundError(f"{what}: {_remedy(path.parent)}") from None
    except IsADirectoryError:
        raise BrokenFileError(f"{path} is a folder, not a file: fetch it again") from None
    except ValueError as error:  # UnicodeDecodeError is one, and quotes the bytes
        reason = checks.shortened(error, checks.MAX_REASON)
        raise BrokenFileError(f"{path} is not valid JSON ({reason}): fetch it again") from None
    if not isinstance(values, dict):
        raise BrokenFileError(f"{path} holds a {type(values).__name__}, not a JSON object: fetch it again")
    return values


def _remedy(folder: Path) -> str:
    if (folder / "training_args.bin").exists():
        return (
            "transformers' Trainer writes none for models that are not its own, so hand it "
            "llamita.bridge.trainable.trainable(model), or call model.save_pretrained"
        )
    return "give the folder of a Hugging Face checkpoint"
