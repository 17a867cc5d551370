"""Token healing: what is dropped is written again, whatever tokens it takes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.structured.healing import Healed, TokenPrefixes, heal
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.token_bytes import token_bytes

#          0     1    2       3    4      5      6     7       8     9
PIECES = [None, b"a", b"http", b":", b"://", b":/", b"/", b"abc", b"b", None]
VOCABULARY = TokenPrefixes(PIECES)


def allowed(healed: Healed) -> set[int] | None:
    mask = healed.healing.allowed
    return None if mask is None else set(mask.nonzero()[:, 0].tolist())


def test_a_colon_may_become_a_longer_token() -> None:
    healed = heal([0, 2, 3], VOCABULARY)
    assert healed.token_ids == [0, 2]
    assert healed.healing.dropped == b":"
    assert allowed(healed) == {3, 4, 5}
    healed.healing.accept(4)
    assert healed.healing.is_over
    assert allowed(healed) is None
    healed.healing.accept(8)  # then anything goes


def test_several_tokens_are_dropped_and_may_come_one_by_one() -> None:
    healed = heal([0, 1, 8], VOCABULARY)  # "ab" begins "abc"
    assert healed.token_ids == [0]
    assert allowed(healed) == {1, 7}
    healed.healing.accept(1)
    assert allowed(healed) == {8}
    healed.healing.accept(8)
    assert healed.healing.is_over


@pytest.mark.parametrize("prompt", [[0], [1], [], [0, 9], [3, 0], [0, 6], [0, 4], [0, 2]])
def test_what_no_token_goes_on_from_stays(prompt: list[int]) -> None:
    assert heal(prompt, VOCABULARY).token_ids == prompt
    assert heal(prompt, VOCABULARY).healing.is_over


def test_the_first_token_and_control_tokens_stay() -> None:
    assert heal([3, 3], VOCABULARY).token_ids == [3]
    assert heal([1, 9, 8], VOCABULARY).token_ids == [1, 9, 8]
    assert heal([0, 1, 9, 3], VOCABULARY).token_ids == [0, 1, 9]


def test_a_vocabulary_of_single_bytes_has_nothing_to_heal(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    ids = tokenizer.encode("http:")
    assert heal(ids, TokenPrefixes(token_bytes(tokenizer))).token_ids == ids


pieces = st.lists(st.binary(min_size=1, max_size=4).map(lambda b: bytes(x % 3 for x in b)), min_size=1, max_size=12)


@given(pieces=pieces, prompt=st.lists(st.integers(0, 11), max_size=8), choices=st.lists(st.integers(0, 99)))
def test_text_is_kept_and_a_token_is_always_allowed(pieces: list[bytes], prompt: list[int], choices: list[int]) -> None:
    pieces = [b"\0", b"\1", b"\2", *pieces]
    vocabulary = TokenPrefixes(pieces)
    prompt = [i % len(pieces) for i in prompt]
    kept, healing = heal(prompt, vocabulary)
    text = b"".join(pieces[i] for i in prompt)
    assert b"".join(pieces[i] for i in kept) + healing.dropped == text
    written = b"".join(pieces[i] for i in kept)
    for choice in [*choices, *[0] * 99]:
        if (mask := healing.allowed) is None:
            break
        left = text[len(written) :]
        fits = [piece.startswith(left) or left.startswith(piece) for piece in pieces]
        assert torch.equal(mask, torch.tensor(fits))
        candidates = mask.nonzero()[:, 0].tolist()
        chosen = candidates[choice % len(candidates)]
        healing.accept(chosen)
        written += pieces[chosen]
    assert healing.is_over
    assert written.startswith(text)
