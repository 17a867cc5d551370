"""Tokens for people: spelled, coloured, in columns."""

import math
from pathlib import Path

import pytest

from llamita.cli import tokens
from llamita.generation.logprobs import TokenLogprob, TokenTexts
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(small_path: Path) -> Tokenizer:
    return load_tokenizer(small_path)


def likely(token_id: int, probability: float = 0.5) -> TokenLogprob:
    return TokenLogprob(token_id, "", math.log(probability))


def test_tokens_are_spelled(tokenizer: Tokenizer) -> None:
    spelling = TokenTexts(tokenizer)
    ids = tokenizer.encode("a\né", add_special_tokens=False)
    assert [spelling.of(i) for i in ids] == ["a", "\n", "\ufffd", "\ufffd"]
    assert [tokens.quoted(spelling.of(i)) for i in ids[:2]] == ["'a'", r"'\n'"]
    assert spelling.of(258) == "<|eot_id|>"
    assert spelling.of(9999) == ""
    told = tokens.data(TokenLogprob(ids[0], "a", -1.0, (TokenLogprob(ids[1], "\n", -0.5),)))
    assert told == {"token": "a", "logprob": -1.0, "top": [{"token": "\n", "logprob": -0.5}]}


def test_a_trail_finds_the_token_of_every_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé€z", add_special_tokens=False)  # 1, 2, 3 and 1 bytes
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    known = [likely(*pair) for pair in zip(ids, shares, strict=True)]
    aligner = tokens.TokenAligner(tokenizer)
    runs = [run for text, count in (("a", 2), ("é€", 6), ("z", 7)) for run in aligner.runs(text, known[:count])]
    told = {text: probability for text, probability in runs if text}
    assert told == pytest.approx({"a": 0.1, "é": 0.3, "€": 0.6, "z": 0.7})


def test_text_may_be_shown_later_and_in_parts_and_end_in_half_a_character(tokenizer: Tokenizer) -> None:
    known = [likely(i, 0.1 * n) for n, i in enumerate(tokenizer.encode("ab€", add_special_tokens=False)[:4], 1)]
    aligner = tokens.TokenAligner(tokenizer)
    assert list(aligner.runs("", known[:2])) == []
    assert "".join(text for text, _ in aligner.runs("ab", known)) == "ab"
    assert "".join(text for text, _ in aligner.runs("\ufffd", known)) == "\ufffd"


@pytest.mark.parametrize(
    ("probability", "style"),
    [(1.0, "sure"), (0.9, "sure"), (0.89, "likely"), (0.3, "open"), (0.1, "unlikely"), (0.0, "surprising")],
)
def test_every_probability_has_its_style(probability: float, style: str) -> None:
    assert tokens.style_of(probability) == style


def test_a_table_fills_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert tokens.table(["one", "three", "five", "x" * 5]) == ["one    three", "five   xxxxx"]
    assert tokens.table(["x" * 99, "y"]) == ["x" * 99, "y"]
    assert tokens.table([]) == []
