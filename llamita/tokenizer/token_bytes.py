"""The bytes and the text that each token of a vocabulary stands for."""

import re
from functools import cached_property

from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.stream import bytes_of_letters, letters_of_bytes

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # SentencePiece's


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of every id: (V,), None for a control token and for an id without a token.

    Byte-level vocabularies spell each byte by a letter; SentencePiece's spell a space by U+2581, a byte by <0x..>.
    """
    is_byte_level = all(tokenizer.token_to_id(letter) is not None for letter in letters_of_bytes())
    pieces: list[bytes | None] = []
    for token_id in range(tokenizer.vocab_size):
        token = tokenizer.id_to_token(token_id)
        if token is None or token_id in tokenizer.control_ids:
            pieces.append(None)
        elif is_byte_level:
            pieces.append(bytes_of_letters(token))
        else:
            byte = _BYTE.fullmatch(token)
            pieces.append(bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode())
    return pieces


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
