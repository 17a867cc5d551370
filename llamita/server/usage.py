"""How many tokens a request took, and how long."""

from collections.abc import Sequence
from typing import Any

from llamita.engine.handle import RequestHandle


def tokens_read(handles: Sequence[RequestHandle], n: int) -> int:
    """Tokens of all prompts, each counted once for its n texts."""
    return sum(len(handle.prompt_token_ids) for handle in handles[::n])


def tokens_written(handles: Sequence[RequestHandle]) -> int:
    """Tokens of all texts that are over."""
    return sum(len(handle.result().token_ids) for handle in handles)


def tokens_cached(handles: Sequence[RequestHandle], n: int) -> int:
    """Tokens of the prompts that were found in the cache, by the first of each prompt's texts."""
    return sum(handle.metrics.cached_tokens for handle in handles[::n])


def timings(handles: Sequence[RequestHandle], n: int) -> dict[str, Any]:
    """llama.cpp's figures of a request that is over: ms and tokens a second, of prompts and of answers.

    prompt_n: tokens that were read, without the cache's. The first token counts to the prompt's time. draft_n: tokens
    that were proposed, if any were.
    """
    cached, written = tokens_cached(handles, n), tokens_written(handles)
    read = tokens_read(handles, n) - cached
    begun = _least(handle.metrics.scheduled for handle in handles)
    first = _least(handle.metrics.first_token for handle in handles)
    last = max((handle.metrics.finished or 0.0 for handle in handles), default=0.0)
    prompt_ms, predicted_ms = max(0.0, first - begun) * 1000, max(0.0, last - first) * 1000
    drafted = sum(handle.metrics.draft_tokens for handle in handles)
    accepted = sum(handle.metrics.accepted_tokens for handle in handles)
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": round(prompt_ms, 3),
        "prompt_per_second": _rate(read, prompt_ms),
        "predicted_n": written,
        "predicted_ms": round(predicted_ms, 3),
        "predicted_per_second": _rate(written - len(handles), predicted_ms),
        **({"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}),
    }


def _least(times: Any) -> float:
    return min((time for time in times if time is not None), default=0.0)


def _rate(count: int, milliseconds: float) -> float | None:
    """Tokens a second; None where nothing was measured."""
    return round(count / milliseconds * 1000, 3) if milliseconds > 0 and count > 0 else None
