"""Tables of a tokenizer, computed once: the text of every token, and the vocabularies of grammars and healing."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

from llamita.errors import UsageError
from llamita.structured import grammar, healing
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.token_bytes import TokenTexts


class TokenTables:
    """A tokenizer and the tables of its tokens, each made at first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._grammars: dict[tuple[int, ...], grammar.Vocabulary] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[Tokenizer]]:
        """For pickle, the tokenizer alone: another process makes its own tables, as those of grammars are no data."""
        return type(self), (self.tokenizer,)

    @cached_property
    def texts(self) -> TokenTexts:
        """The text of every token."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def healing(self) -> healing.TokenPrefixes:
        """Which tokens begin alike."""
        return healing.TokenPrefixes(self.texts.pieces)

    def grammar(self, eos_token_ids: Sequence[int]) -> grammar.Vocabulary:
        """The tokens as grammars see them; a text may end with one of these ids."""
        key = tuple(eos_token_ids)
        if key not in self._grammars:
            self._grammars[key] = grammar.Vocabulary(self.tokenizer, key)
        return self._grammars[key]


def checked(tables: TokenTables | None, flag: str) -> TokenTables:
    """The tables of one of our tokenizers: raises UsageError for none, and for one of another library."""
    if tables is None:
        raise UsageError(f"{flag} is about text: pass tokenizer= as well")
    tokenizer = tables.tokenizer
    if not (hasattr(tokenizer, "to_json") and hasattr(tokenizer, "control_ids")):
        raise UsageError(
            f"{flag} cannot read a {type(tokenizer).__name__}: pass llamita.tokenizer.load.load_tokenizer(folder)"
        )
    return tables
