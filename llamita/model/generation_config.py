"""How a model writes unless it is told otherwise: what its generation_config.json says."""

from typing import Any, Self

from llamita.config import LlamaConfig

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class GenerationConfig(dict[str, Any]):
    """The content of generation_config.json, whose names are attributes too; one that is not there reads None."""

    __slots__ = ()

    @classmethod
    def of(cls, config: LlamaConfig) -> Self:
        """What a model without the file goes by: the tokens that its config names."""
        return cls({name: value for name in TOKENS if (value := getattr(config, name)) is not None})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Python asks so for __deepcopy__ and the like, and would call None
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary of it, under the name that transformers' object has for that."""
        return dict(self)
