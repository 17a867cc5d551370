"""A task made from a seed, which no model has learned: the first and the last word of a list change places."""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from llamita.data.records import Record

NAME = "the practice task"
COUNT, SEED = 3000, 13
LENGTHS = (3, 4, 5)  # words of a list
WORDS = (
    "red", "cat", "sun", "dog", "bee", "tree", "house", "moon", "star", "fish", "bird", "ball", "book", "milk", "cake",
    "king", "frog", "boat", "door", "lamp", "rain", "snow", "leaf", "rock", "hat", "box", "bell", "hill",
)  # fmt: skip


def completions() -> list[Record]:
    """Lists of words, and the same with their ends swapped."""
    return _records(lambda words: {"completion": f" {' '.join(swapped(words))}"})


def pairs() -> list[Record]:
    """The same as preferences: the ends swapped rather than another two words, or none."""

    def fields(words: list[str]) -> dict[str, str]:
        wrong = [words[1], words[0], *words[2:]] if len(words) % 2 else words
        return {"chosen": f" {' '.join(swapped(words))}", "rejected": f" {' '.join(wrong)}"}

    return _records(fields)


def beginnings() -> list[Record]:
    """Beginnings of stories, and a pattern that says what is wanted of what follows: that somebody speaks."""
    texts = [
        f"{opening} {name} had a {color} {thing}."
        for opening in ("Once upon a time", "One day", "In the morning", "After the rain")
        for name in ("Mia", "Tom", "Ada", "Ben", "Lily", "Sam")
        for color in ("red", "blue", "little", "big")
        for thing in ("ball", "boat", "dog", "book")
    ]
    Random(SEED).shuffle(texts)
    return [
        Record({"prompt": text, "pattern": '"'}, f"{NAME}, line {number}") for number, text in enumerate(texts, start=1)
    ]


def swapped(words: list[str]) -> list[str]:
    """The words with the first and the last in each other's place."""
    return [words[-1], *words[1:-1], words[0]]


def _records(fields: Callable[[list[str]], Mapping[str, Any]]) -> list[Record]:
    lists = sorted(_lists())
    Random(SEED).shuffle(lists)
    return [
        Record({"prompt": f"{' '.join(words)}, ends swapped:", **fields(list(words))}, f"{NAME}, line {number}")
        for number, words in enumerate(lists, start=1)
    ]


def _lists() -> set[tuple[str, ...]]:
    """Lists of different words; no list is there twice, so what is held out is never learned."""

    def draw() -> Iterator[tuple[str, ...]]:
        random = Random(SEED)
        while True:
            yield tuple(random.sample(WORDS, random.choice(LENGTHS)))

    found: set[tuple[str, ...]] = set()
    for words in draw():
        found.add(words)
        if len(found) == COUNT:
            return found
    raise AssertionError
