"""What a tokenizer is to the rest of the package."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back. Immutable once loaded, so threads may share it."""

    @property
    def vocab_size(self) -> int:
        """The largest id plus one."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end token: the first of `eos_token_ids`."""
        ...

    @property
    def eos_token_ids(self) -> list[int]:
        """Every id that ends an answer."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The id made for padding; None where there is none (the end token is never taken silently)."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids that stand for no text."""
        ...

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that text from outside must not be able to write: the special ones, and the template's own."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's default chat template, Jinja source."""
        ...

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All of the checkpoint's chat templates by name, such as "default" and "tool_use"."""
        ...

    @property
    def byte_table(self) -> Mapping[int, bytes] | None:
        """The bytes of each token, where those of a text are its tokens' one after the other; else None."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text; what looks like a special token in it stays text unless `parse_special`."""
        ...

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of a text given in parts: strings are text whatever they look like, ints are control ids."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, spelled as in the vocabulary."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None outside the vocabulary."""
        ...

    def to_json(self) -> str:
        """The content of a tokenizer.json, for libraries that read that themselves."""
        ...

    def to_sealed_json(self) -> str:
        """The same with its control tokens under names that nobody can type."""
        ...
