"""Text from ids that arrive one at a time, never with half a character."""

import re

from llamita.tokenizer.protocol import Tokenizer

# A UTF-8 character has at most 4 bytes and a token at least one, so text is settled by the last 4 tokens.
CONTEXT = 4
MOST = 12  # tokens that are decoded again before they are cut to the context, which costs one more decoding
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class StreamDecoder:
    """Decodes a stream: the pushes and the flush together are what `decode` makes of all the ids.

    A push costs the same however long the text is, since only the last tokens are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._restart()

    def push(self, token_id: int) -> str:
        """The text that is complete with this id; "" while a character is partial."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        # SentencePiece's byte tokens are judged as a whole run: one bad byte makes every byte of it U+FFFD.
        return "" if _BYTE.fullmatch(token) else self._take()

    def flush(self) -> str:
        """What is left at the end of the stream; the decoder is then as new."""
        rest = self._decode()[self._taken :]
        self._restart()
        return rest

    def _restart(self) -> None:
        self._ids: list[int] = []  # the last tokens
        self._taken = 0  # characters of their text that are out already

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
