"""Prose stays; lists of symbols, bullets, numbers and fragments go."""

import pytest

from llamita.data.cleaning.quality import is_prose

PROSE = "The llama walked down the hill, and it found a small green leaf.\nIt was glad."


def test_prose_is_kept() -> None:
    assert is_prose(PROSE)


@pytest.mark.parametrize(
    "text",
    [
        "Too few words.",
        "a b c d e f g h i j k",
        "pneumonoultramicroscopicsilicovolcanoconiosis " * 6,
        PROSE + " # # # # # #",
        "\n".join(f"- point number {n} of the list" for n in range(9)),
        "\n".join(["He said that it was late..."] * 2 + ["So they all went home at once."]),
        "12 34 56 78 90 12 the 34 56 78 90 llamas",
    ],
)
def test_what_is_no_prose_is_left_out(text: str) -> None:
    assert not is_prose(text)
