"""Text from ids that arrive one at a time, never with half a character."""

import re
from codecs import utf_8_decode
from collections.abc import Callable
from functools import cache

from llamita.tokenizer.protocol import Tokenizer

# A UTF-8 character has at most 4 bytes and a token at least one, so text is settled by the last 4 tokens.
CONTEXT = 4
MOST = 12  # tokens that are decoded again before they are cut to the context, which costs one more decoding
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class StreamDecoder:
    """Decodes a stream: the pushes and the flush together are what `decode` makes of all the ids.

    A push costs the same however long the text is: of a byte-level vocabulary the new bytes are decoded, of others the
    last tokens again.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._bytes = getattr(tokenizer, "byte_table", None)  # which a tokenizer of the caller may lack
        self._restart()

    def push(self, token_id: int) -> str:
        """The text that is complete with this id; "" while a character is partial."""
        if self._bytes is not None:
            return "" if token_id in self._hidden else self._decoded(self._bytes[token_id])
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        # SentencePiece's byte tokens are judged as a whole run: one bad byte makes every byte of it U+FFFD.
        return "" if _BYTE.fullmatch(token) else self._take()

    def flush(self) -> str:
        """What is left at the end of the stream; the decoder is then as new."""
        rest = self._decoded(b"", is_last=True) + self._decode()[self._taken :]
        self._restart()
        return rest

    def _restart(self) -> None:
        self._ids: list[int] = []  # the last tokens
        self._taken = 0  # characters of their text that are out already
        self._partial = b""  # the bytes of a partial character

    def _decoded(self, more: bytes, *, is_last: bool = False) -> str:
        """The text that these bytes complete."""
        held = self._partial + more
        text, used = utf_8_decode(held, "replace", is_last)
        self._partial = held[used:]
        return text

    def _take(self) -> str:
        text = self._decode()
        partial = text.endswith("\ufffd")  # Only this one can still become a character.
        piece = text[self._taken : len(text) - partial]
        if len(self._ids) > MOST:
            self._ids = self._ids[-CONTEXT:]
            text = self._decode()
        self._taken = len(text) - partial
        return piece

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=False)


def bytes_of_letters(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary."""
    letters = letters_of_bytes()
    known = all(letter in letters for letter in token)  # an added token is spelled as it is
    return bytes(letters[letter] for letter in token) if known else token.encode()


class ByteTable(dict[int, bytes]):
    """The bytes of the tokens of a byte-level vocabulary, found when they are first asked for; none for other ids."""

    def __init__(self, id_to_token: Callable[[int], str | None]) -> None:
        super().__init__()
        self._id_to_token = id_to_token

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = bytes_of_letters(self._id_to_token(token_id) or "")
        return found


@cache
def letters_of_bytes() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: themselves where they are visible, else those from U+0100 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
