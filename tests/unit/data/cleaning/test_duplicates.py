"""Near-duplicates: minhashes find what an exact comparison of all pairs finds."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from llamita.data.cleaning.duplicates import (
    ALIKE,
    LINE_GRAM,
    TEXT_GRAM,
    _grams,
    different,
    jaccard,
    without_repeated_lines,
)

WORDS = [f"w{n}" for n in range(40)]


def changed(text: str, rng: Random, count: int) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), count):
        words[place] = "changed"
    return " ".join(words)


@given(st.integers(0, 99))
def test_texts_are_those_of_an_exact_comparison(seed: int) -> None:
    rng = Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(30, 90))) for _ in range(6)]
    texts += [changed(rng.choice(texts), rng, rng.choice([0, 1, 2, 9])) for _ in range(6)] + ["a b", "A b ", "a c"]
    kept: list[int] = []
    for number, text in enumerate(texts):
        grams = _grams(text, TEXT_GRAM)
        alike = any(jaccard(grams, _grams(texts[other], TEXT_GRAM)) >= ALIKE for other in kept if grams)
        if not alike and not (not grams and text.strip().lower() in {texts[other].strip().lower() for other in kept}):
            kept.append(number)
    assert different(texts) == kept


def test_case_and_punctuation_make_no_difference() -> None:
    texts = ["One two, three four five six.", "one TWO three four: five six", "one two three four five"]
    assert different(texts) == [0, 2]


def test_lines_that_repeat_go_and_short_ones_stay() -> None:
    lines = ["Subscribe to our newsletter today", "", "A new line of text here", "Subscribe, to our newsletter today!"]
    assert without_repeated_lines("\n".join([*lines, "", "ok", "ok"])) == "\n".join([*lines[:3], "", "ok", "ok"])
    assert LINE_GRAM == 3
    assert without_repeated_lines("a b\na b") == "a b\na b"


def test_jaccard_is_intersection_over_union() -> None:
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert jaccard(frozenset(), frozenset()) == 1
