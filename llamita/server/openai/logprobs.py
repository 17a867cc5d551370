"""Log-probabilities in OpenAI's two shapes; minus infinity, which JSON has not, becomes -9999."""

from collections.abc import Sequence
from typing import Any

from llamita.generation.logprobs import TokenLogprob
from llamita.tokenizer.token_bytes import TokenTexts

LEAST = -9999.0


def chat_entry(entry: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    """A token of a chat, with the likeliest in its place."""
    return _token(entry, texts) | {"top_logprobs": [_token(one, texts) for one in entry.top]}


def chat_logprobs(entries: Sequence[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    return {"content": [chat_entry(entry, texts) for entry in entries], "refusal": None}


def completion_logprobs(entries: Sequence[TokenLogprob | str], offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion's choice: a column each. A text alone is a first token, which nothing comes before.

    offset: characters of the text before the first.
    """
    columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        is_first = isinstance(entry, str)
        text = entry if is_first else entry.text
        columns["tokens"].append(text)
        columns["token_logprobs"].append(None if is_first else finite(entry.logprob))
        columns["top_logprobs"].append(None if is_first else {one.text: finite(one.logprob) for one in entry.top})
        columns["text_offset"].append(offset)
        offset += len(text)
    return columns


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LEAST)


def _token(entry: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    piece = texts.pieces[entry.token_id] if entry.token_id < len(texts.pieces) else None
    spelled = entry.text.encode() if piece is None else piece
    return {"token": entry.text, "logprob": finite(entry.logprob), "bytes": list(spelled)}
