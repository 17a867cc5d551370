"""A model's default generation settings: the content of its generation_config.json."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from llamita.checks import quoted
from llamita.config import LlamaConfig
from llamita.config.files import refuse_upload
from llamita.errors import UsageError

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
FILE = "generation_config.json"


class GenerationConfig(dict[str, Any]):
    """The content of generation_config.json; its names are attributes too, and a missing one is None.

    It has the methods of transformers' object of that name, so that its pipelines and trainers can use it.
    """

    __slots__ = ()

    @classmethod
    def of(cls, config: LlamaConfig) -> Self:
        """What a model without the file goes by: the tokens that its config names."""
        return cls({name: value for name in TOKENS if (value := getattr(config, name)) is not None})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "_from_model_config":  # as __deepcopy__, which Python would call
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def update(self, *others: Any, **changes: Any) -> Any:
        """Set several at once; returns what was not used, which is nothing."""
        super().update(*others, **changes)
        return {}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **changes: Any) -> Self:
        """The content of a file, with some of it changed."""
        return cls(dict(config_dict) | changes)

    @classmethod
    def from_model_config(cls, model_config: LlamaConfig) -> Self:
        """`of`, under the name that transformers' object has for it."""
        return cls.of(model_config)

    @classmethod
    def from_pretrained(cls, folder: str | Path, config_file_name: str = FILE, **changes: Any) -> Self:
        """Read `folder/generation_config.json`, with some of it changed.

        Raises NotFoundError without such a file, BrokenFileError for a damaged one.
        """
        from llamita.files.disk import read_json

        return cls.from_dict(read_json(Path(folder) / config_file_name), **changes)

    def save_pretrained(
        self, save_directory: str | Path, config_file_name: str = FILE, push_to_hub: bool = False
    ) -> None:
        """Write `folder/generation_config.json`, replacing it in one step."""
        refuse_upload(push_to_hub)
        self.to_json_file(Path(save_directory) / config_file_name)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary of it."""
        return dict(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """What of it is set."""
        return {name: value for name, value in self.items() if value is not None}

    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: Collection[str] | None = None
    ) -> str:
        """The content as JSON; ignore_metadata leaves out the version of transformers that wrote it."""
        left_out = {*(keys_to_pop or ()), *(("transformers_version", "_from_model_config") if ignore_metadata else ())}
        values = self.to_diff_dict() if use_diff else self.to_dict()
        kept = {name: value for name, value in values.items() if name not in left_out}
        return json.dumps(kept, indent=2, sort_keys=True) + "\n"

    def to_json_file(
        self, json_file_path: str | Path, use_diff: bool = True, keys_to_pop: Collection[str] | None = None
    ) -> None:
        """Write `to_json_string` to a file, replacing it in one step."""
        from llamita.files.disk import write_json

        path = Path(json_file_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(self.to_json_string(use_diff, keys_to_pop=keys_to_pop)))

    def validate(self, strict: bool = False) -> None:
        """Nothing: `generate` checks what it goes by, in a sentence."""

    def get_generation_mode(self, assistant_model: object = None) -> str:
        """transformers' word for the way of writing that the flags ask for."""
        proposers = (assistant_model, self.prompt_lookup_num_tokens, self.assistant_early_exit)
        if any(proposer is not None for proposer in proposers):
            return "assisted_generation"
        is_drawn = self.do_sample is True
        if self.num_beams in (None, 1):
            return "sample" if is_drawn else "greedy_search"
        return "beam_sample" if is_drawn else "beam_search"


def fields_of(config: Any) -> dict[str, Any]:
    """What a generation config says: a mapping, transformers' object of that name, or None, which says nothing.

    Raises UsageError for anything else.
    """
    if config is None or (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        return dict(config or {})
    read = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
    if read is None or isinstance(config, Mapping):
        raise UsageError(f"generation_config is {quoted(config)}: give a dictionary, or an object of that name")
    return {
        name: value
        for name, value in read().items()
        if name != "transformers_version" and name[0] != "_" and value is not None
    }
