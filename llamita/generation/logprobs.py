"""How likely the tokens of a text were, each with its own text."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from llamita.tokenizer.pieces import token_bytes
from llamita.tokenizer.protocol import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from llamita.generation.outputs import Logprobs


class TokenLogprob(NamedTuple):
    """A token, its text, its log probability among all, and the likeliest in its place."""

    token_id: int
    text: str
    logprob: float
    top: "Sequence[TokenLogprob]" = ()

    @property
    def probability(self) -> float:
        """From 0 to 1."""
        return math.exp(self.logprob)


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

    def likely(self, tokens: "Tensor", logprobs: "Logprobs") -> list[TokenLogprob]:
        """Tokens (T,) with their log probabilities (T,), (T, n)."""
        tops = zip(logprobs.top.tolist(), logprobs.top_logprobs.tolist(), strict=True)
        beside = [tuple(TokenLogprob(i, self.of(i), value) for i, value in zip(*top, strict=True)) for top in tops]
        rows = zip(tokens.tolist(), logprobs.chosen.tolist(), beside, strict=True)
        return [TokenLogprob(token_id, self.of(token_id), logprob, top) for token_id, logprob, top in rows]


class LogprobRecorder:
    """Watches a batch: how likely each token was by the model's own logits, before temperature and filters.

    rows: the tokens of each row so far. top: how many of the likeliest to note beside each.
    """

    def __init__(self, spelling: TokenTexts, rows: int, *, top: int) -> None:
        self.rows: list[list[TokenLogprob]] = [[] for _ in range(rows)]
        self._spelling = spelling
        self._top = top

    def __call__(self, logits: "Tensor", chosen: "Tensor") -> None:
        """Note a step: logits (B, V) and tokens (B,)."""
        from llamita.generation.outputs import logprobs_of

        step = self._spelling.likely(chosen, logprobs_of(logits, chosen, top=self._top))
        for row, likely in zip(self.rows, step, strict=True):
            row.append(likely)
