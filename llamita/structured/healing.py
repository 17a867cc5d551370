"""Token healing: a prompt that ends inside a token is cut back to the start of that token.

"http:" ends with the token ":", but in the model's training text "http" is followed by the token "://". So the last
tokens are dropped, and the first new tokens must spell the dropped text, possibly as the start of a longer token.
"""

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor


class TokenPrefixes:
    """Tokens found by the bytes they begin with. pieces: the bytes of every id (V,), from `tokenizer.token_bytes`."""

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = pieces
        self.longest = max((len(piece) for piece in pieces if piece), default=0)
        self._sorted = sorted((piece, i) for i, piece in enumerate(pieces) if piece)

    def going_on_from(self, text: bytes) -> list[int]:
        """The ids whose bytes begin with a text."""
        found = []
        for index in range(bisect_left(self._sorted, (text, -1)), len(self._sorted)):
            piece, token_id = self._sorted[index]
            if not piece.startswith(text):
                break
            found.append(token_id)
        return found

    def leading_into(self, text: bytes) -> list[int]:
        """The ids whose bytes are a shorter beginning of a text."""
        found = []
        for end in range(1, min(len(text), self.longest + 1)):
            index = bisect_left(self._sorted, (text[:end], -1))
            while index < len(self._sorted) and self._sorted[index][0] == text[:end]:
                found.append(self._sorted[index][1])
                index += 1
        return found

    def is_begun_by(self, text: bytes) -> bool:
        """Whether some token begins with a text and is longer."""
        return any(self.pieces[i] != text for i in self.going_on_from(text))


class Healing:
    """The constraint of a healed prompt: which tokens may come until the dropped text is written again.

    dropped: the bytes taken off the prompt; the text that follows begins with them.
    """

    def __init__(self, prefixes: TokenPrefixes, dropped: bytes) -> None:
        self.dropped = dropped
        self._prefixes = prefixes
        self._left = dropped

    @property
    def is_over(self) -> bool:
        """Whether any token may come."""
        return not self._left

    @property
    def allowed(self) -> Tensor | None:
        """Which ids may come next, bool (V,): those that spell what is left, or a part of it; None for any."""
        if self.is_over:
            return None
        mask = torch.zeros(len(self._prefixes.pieces), dtype=torch.bool, device="cpu")
        mask[self._prefixes.going_on_from(self._left) + self._prefixes.leading_into(self._left)] = True
        return mask

    def mask(self, size: int) -> Tensor | None:
        """`allowed` for the first `size` ids, bool (size,)."""
        allowed = self.allowed
        return None if allowed is None else torch.nn.functional.pad(allowed, (0, size - len(allowed)))

    def accept(self, token_id: int) -> None:
        """Take the token that came; one that was not allowed (padding, a beam that is lost) changes nothing."""
        piece = self._piece(token_id)
        if piece.startswith(self._left) or self._left.startswith(piece):
            self._left = self._left[len(piece) :]

    def fork(self) -> "Healing":
        """An independent copy, for a beam or a draft."""
        return copy(self)

    def _piece(self, token_id: int) -> bytes:
        pieces = self._prefixes.pieces
        return (pieces[token_id] if token_id < len(pieces) else None) or b""


class Healed(NamedTuple):
    """A prompt without its last tokens, and the constraint that writes them again."""

    token_ids: list[int]
    healing: Healing


def heal(token_ids: Sequence[int], prefixes: TokenPrefixes) -> Healed:
    """Drop the most last tokens whose bytes together begin a longer token; the first token always stays.

    Control tokens are never dropped, so a prompt that ends with one is left alone.
    """
    start, text = len(token_ids), b""
    for index in range(len(token_ids) - 1, 0, -1):
        piece = prefixes.pieces[token_ids[index]]
        if piece is None or len(piece) + len(text) >= max(prefixes.longest, 1):
            break
        text = piece + text
        if prefixes.is_begun_by(text):
            start = index
    kept = list(token_ids[:start])
    return Healed(kept, Healing(prefixes, b"".join(prefixes.pieces[i] or b"" for i in token_ids[start:])))
