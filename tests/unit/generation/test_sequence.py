"""Rows end where they should, and show their text as early as it is safe, and never more."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamita.errors import UsageError
from llamita.generation.sequence import Ending, Finish, Sequence, SequenceBatch, first_match, partial_match
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(small_path: Path) -> Tokenizer:
    return load_tokenizer(small_path)


def written(tokenizer: Tokenizer, text: str, **options) -> tuple[Sequence, list[str]]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    row = Sequence(**{"limit": len(ids)} | options, tokenizer=tokenizer)
    pieces = []
    for token_id in ids:
        if row.finish is None:
            pieces.append(row.push(token_id))
    return row, pieces


def test_a_stop_string_over_several_tokens_is_not_shown(tokenizer: Tokenizer) -> None:
    row, pieces = written(tokenizer, "one\ntwo END three", strings=["END", "\n\n"])
    assert row.text == "".join(pieces) == "one\ntwo "
    assert row.finish == Finish("stop", "END")
    assert tokenizer.decode(row.token_ids) == "one\ntwo END"


def test_a_stop_string_may_be_shown(tokenizer: Tokenizer) -> None:
    row, pieces = written(tokenizer, "one\ntwo END three", strings=["END", "\n\n"], ending=Ending(is_shown=True))
    assert row.text == "".join(pieces) == "one\ntwo END"
    ends = tokenizer.encode("w", add_special_tokens=False)
    assert written(tokenizer, "one two", eos_token_ids=ends)[0].text == "one t"
    row, _ = written(tokenizer, "one two", ending=Ending(tuple(ends), is_shown=True))
    assert (row.text, row.finish) == ("one tw", Finish("stop", ends[0]))


def test_what_only_looked_like_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    row, pieces = written(tokenizer, "EN ENENX EN", strings=["END"])
    assert row.text == "EN ENENX EN"
    assert row.finish == Finish("length")
    assert pieces[:3] == ["", "", "EN "]


def test_stop_strings_of_several_bytes_a_character(tokenizer: Tokenizer) -> None:
    row, _ = written(tokenizer, "día 🦙 no", strings=["🦙"])
    assert row.text == "día "
    assert row.finish == Finish("stop", "🦙")


def test_text_cut_in_a_character_ends_before_it(tokenizer: Tokenizer) -> None:
    row, pieces = written(tokenizer, "a🦙", limit=3)
    assert (pieces, row.text) == (["a", "", ""], "a")
    assert tokenizer.decode(row.token_ids) == "a\ufffd"


def test_a_character_that_is_no_longer_written_is_shown_as_wrong(tokenizer: Tokenizer) -> None:
    row = Sequence(10, eos_token_ids=[257], tokenizer=tokenizer)
    for token_id in [*tokenizer.encode("a🦙", add_special_tokens=False)[:3], 257]:
        row.push(token_id)
    assert row.text == "a\ufffd"


def test_an_end_token_releases_what_was_held(tokenizer: Tokenizer) -> None:
    row = Sequence(10, eos_token_ids=[257], strings=["END"], tokenizer=tokenizer)
    for token_id in [*tokenizer.encode("an EN", add_special_tokens=False), 257]:
        row.push(token_id)
    assert row.text == "an EN"
    assert row.finish == Finish("stop", 257)


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    row = Sequence(2, eos_token_ids=[4])
    row.push(3)
    row.push(4)
    assert row.finish == Finish("stop", 4)


def test_the_match_that_is_complete_first_counts() -> None:
    assert first_match("xaby", ["xaby", "ab"]) == (1, "ab")
    assert first_match("xab", ["ab", "xab"]) == (0, "xab")
    assert first_match("xa", ["ab"]) is None
    assert partial_match("xa", ["ab"]) == 1
    assert partial_match("aa", ["aab", "ac"]) == 2
    assert partial_match("", ["ab"]) == partial_match("ab", []) == 0


@given(st.text("ab\u00e9🦙", max_size=30), st.lists(st.text("ab\u00e9🦙", min_size=1, max_size=4), max_size=3))
def test_tokens_do_not_change_where_a_text_stops(text: str, strings: list[str]) -> None:
    class Letters:
        special_ids: frozenset[int] = frozenset()

        def id_to_token(self, token_id: int) -> str:
            return chr(token_id)

        def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
            return "".join(map(chr, ids))

    row = Sequence(len(text), strings=strings, tokenizer=Letters())  # type: ignore[arg-type]
    for letter in text:
        if row.finish is None:
            row.push(ord(letter))
    match = first_match(text, strings)
    assert row.text == (text if match is None else text[: match[0]])


def test_a_batch_ends_row_by_row() -> None:
    stop = SequenceBatch([Sequence(5, eos_token_ids=[9]), Sequence(2, eos_token_ids=[9]), Sequence(5)])
    steps = [[1, 1, 9], [9, 1, 9], [7, 7, 9]]
    shown = []
    for step in steps:
        padded = stop.padded(torch.tensor(step), 0)
        stop.accept(padded)
        shown.append(padded.tolist())
    assert shown == [[1, 1, 9], [9, 1, 9], [0, 0, 9]]
    assert [row.token_ids for row in stop.sequences] == [[1, 9], [1, 1], [9, 9, 9]]
    assert [row.finish for row in stop.sequences] == [Finish("stop", 9), Finish("length"), None]
    assert not stop.is_over


def test_a_row_goes_on_from_the_text_before_it() -> None:
    class Words:
        """Decodes as SentencePiece: every word brings its space, and a text loses that of its first."""

        special_ids: frozenset[int] = frozenset()

        def id_to_token(self, token_id: int) -> str:
            return "\u2581" + "abcdef"[token_id]

        def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
            return "".join(" " + "abcdef"[i] for i in ids)[1:]

    tokenizer: Any = Words()
    alone, behind = Sequence(2, tokenizer=tokenizer), Sequence(2, tokenizer=tokenizer, after=[0, 1, 2, 3, 4, 5])
    for token_id in (2, 3):
        alone.push(token_id)
        behind.push(token_id)
    assert (alone.text, behind.text) == ("c d", " c d")


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="tokenizer="):
        Sequence(3, strings=["x"])
