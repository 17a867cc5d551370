"""The bytes and the text that each token of a vocabulary stands for."""

import re
from functools import cached_property

from llamita.tokenizer.protocol import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # SentencePiece's


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of every id: (V,), None for a control token and for an id without a token.

    Byte-level vocabularies spell each byte by a letter; SentencePiece's spell a space by U+2581, a byte by <0x..>.
    """
    letters = _letters()
    is_byte_level = all(tokenizer.token_to_id(letter) is not None for letter in letters)
    pieces: list[bytes | None] = []
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.id_to_token(token_id)
        if token is None or token_id in tokenizer.control_ids:
            pieces.append(None)
        elif is_byte_level:
            known = all(letter in letters for letter in token)  # an added token is spelled as it is
            pieces.append(bytes(letters[letter] for letter in token) if known else token.encode())
        else:
            byte = _BYTE.fullmatch(token)
            pieces.append(bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode())
    return pieces


def _letters() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: themselves where they are visible, else those from U+0100 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


class TokenTexts:
    """How the tokens of a vocabulary are written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every id (V,), None for control tokens."""
        return token_bytes(self._tokenizer)

    def of(self, token_id: int) -> str:
        """A token's own text; bytes that are no character by themselves become U+FFFD."""
        piece = self.pieces[token_id] if token_id < len(self.pieces) else None
        return (self._tokenizer.id_to_token(token_id) or "") if piece is None else piece.decode(errors="replace")
