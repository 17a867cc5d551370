"""R9, R10: stop strings over any number of tokens, and characters of several bytes, streamed and whole."""

import json
from typing import Any

import pytest

from tests.server.serving import Running, chat

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def whole(server: Running, **fields: Any) -> tuple[str, str]:
    """The text of an answer, and why it ended."""
    (choice,) = server.post("/v1/chat/completions", chat(**fields)).json()["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def pieces(server: Running, **fields: Any) -> tuple[list[str], str]:
    """The same as it is streamed: the pieces of the text, and why it ended."""
    lines = server.post("/v1/chat/completions", chat(stream=True, **fields)).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    choices = [chunk["choices"][0] for chunk in chunks]
    return [choice["delta"].get("content", "") for choice in choices], choices[-1]["finish_reason"]


TEXT = "One STOP two ÄÖ€😀 three <|end of line|> four"
STOPS = [
    ["STOP"],
    [" S"],
    ["O"],
    ["€"],
    ["😀"],
    ["Ö€😀 t"],
    ["<|end of line|>"],
    ["three <|end of line|> four"],
    ["four", "two", "three"],
    ["STOPPED", "STOP tw", "tomorrow"],
]


@pytest.mark.parametrize("stop", STOPS, ids=range(len(STOPS)))
def test_r9_a_text_ends_before_the_first_stop_string(server: Running, stop: list[str]) -> None:
    fields: dict[str, Any] = {"choice": [TEXT], "stop": stop}
    end = min(TEXT.index(one) for one in stop if one in TEXT)
    assert whole(server, **fields) == (TEXT[:end], "stop")
    streamed, reason = pieces(server, **fields)
    assert ("".join(streamed), reason) == (TEXT[:end], "stop")


@pytest.mark.parametrize("stop", ["fourth", "😀😀", "four and five", "XYZ"])
def test_r9_what_might_have_become_a_stop_string_is_not_lost(server: Running, stop: str) -> None:
    fields: dict[str, Any] = {"choice": [TEXT], "stop": stop}
    assert whole(server, **fields)[0] == "".join(pieces(server, **fields)[0]) == TEXT


EMOJI = "😀é€👩‍👩‍👧 한"


def test_r10_no_piece_has_half_a_character(server: Running) -> None:
    streamed, reason = pieces(server, choice=[EMOJI])
    assert "".join(streamed) == EMOJI
    assert reason == "stop"
    assert REPLACEMENT not in "".join(streamed)


def test_r10_a_text_cut_inside_a_character_ends_before_it(server: Running) -> None:
    total = server.post("/v1/chat/completions", chat(choice=[EMOJI])).json()["usage"]["completion_tokens"]
    assert total > len(EMOJI)  # so that some cuts are inside
    texts = []
    for most in range(1, total - 1):
        text, reason = whole(server, choice=[EMOJI], max_tokens=most)
        assert EMOJI.startswith(text)
        assert reason == "length"
        assert "".join(pieces(server, choice=[EMOJI], max_tokens=most)[0]) == text
        texts.append(text)
    assert texts[0] == ""
    assert len(set(texts)) == len(EMOJI)
