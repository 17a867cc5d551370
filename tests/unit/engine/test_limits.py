"""The limits of an engine, and the blocks that its cache gets."""

from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.engine import limits
from llamita.engine.limits import EngineLimits, blocks_of
from llamita.errors import MemoryShortError, UsageError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"block_size": 24}, "power of two"),
        ({"max_num_seqs": 0}, "at least 1"),
        ({"max_num_seqs": "3"}, "whole number of at least 1"),
        ({"max_num_queued": -1}, "whole number of at least 0"),
        ({"max_model_len": 1.5}, "max_model_len is 1.5"),
        ({"num_blocks": True}, "num_blocks is True"),
        ({"num_blocks": -1}, "at least 1"),
        ({"block_size": 1.0}, "block_size is 1.0"),
        ({"num_speculative_tokens": "x"}, "num_speculative_tokens is 'x'"),
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, "raise it, or lower max_num_seqs"),
    ],
)
def test_wrong_limits(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineLimits(**given)


def test_blocks(small_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llamita.load(small_path, dtype="float32").model
    assert blocks_of(model, EngineLimits(num_blocks=7)) == 7
    assert blocks_of(model, EngineLimits(max_num_seqs=3, block_size=16)) == 3 * 128 // 16
    assert blocks_of(model, EngineLimits(max_num_seqs=3, block_size=16, max_model_len=20)) == 3 * 2
    block = 2 * 4 * 2 * 16 * 4 * 16  # keys and values, layers, heads, width, bytes, slots
    monkeypatch.setattr(limits, "free_memory", lambda device: 10 * block)
    assert blocks_of(model, EngineLimits()) == 4
    monkeypatch.setattr(limits, "free_memory", lambda device: block)
    with pytest.raises(MemoryShortError, match="no block of 16 tokens"):
        blocks_of(model, EngineLimits())
