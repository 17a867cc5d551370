"""Log-probabilities in OpenAI's two shapes; minus infinity, which JSON has not, becomes -9999."""

import math
from collections.abc import Sequence
from typing import Any

from llamita.generation.logprobs import TokenLogprob
from llamita.tokenizer.token_bytes import TokenTexts

LEAST = -9999.0


def chat_entry(entry: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    """A token of a chat, with the most probable alternatives."""
    return _token(entry, texts) | {"top_logprobs": [_token(one, texts) for one in entry.top]}


def chat_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {"content": [chat_entry(entry, texts) for entry in entries], "refusal": None}


def completion_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts, offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion's choice: a column each. NaN, of a first token, becomes null.

    offset: characters of the text before the first.
    """
    columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        is_known = not math.isnan(entry.logprob)
        columns["tokens"].append(entry.text)
        columns["token_logprobs"].append(finite(entry.logprob) if is_known else None)
        columns["top_logprobs"].append(_by_text(entry) if is_known else None)
        columns["text_offset"].append(offset)
        offset += spelled_length(entry, texts)
    return columns


def _by_text(entry: TokenLogprob) -> dict[str, float]:
    """The log-probabilities of an entry by the texts of its tokens; of those that look alike, the first."""
    found: dict[str, float] = {}
    for one in (entry, *entry.top):
        found.setdefault(one.text, finite(one.logprob))
    return found


def spelled_length(entry: TokenLogprob, texts: TokenTexts) -> int:
    """How many characters a token adds to a text: control tokens add none."""
    return 0 if entry.token_id >= len(texts.pieces) or texts.pieces[entry.token_id] is None else len(entry.text)


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LEAST)


def _token(entry: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    piece = texts.pieces[entry.token_id] if entry.token_id < len(texts.pieces) else None
    spelled = entry.text.encode() if piece is None else piece
    return {"token": entry.text, "logprob": finite(entry.logprob), "bytes": list(spelled)}
