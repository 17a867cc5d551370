"""Near-duplicates, by the n-grams of words that texts share: among the lines of a text, and among texts."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

WORD = re.compile(r"\w+")
LINE_GRAM, TEXT_GRAM = 3, 5  # words of an n-gram
ALIKE = 0.8  # the Jaccard index from which two are taken for one
WINDOW = 100  # lines before, that a line is compared with
BANDS, BAND = 32, 8  # minhashes of a text: texts of an index of 0.8 share a band with a probability of 0.997


def without_repeated_lines(text: str) -> str:
    """The text without lines that nearly repeat one of the 100 lines before; empty lines and short ones stay."""
    lines: list[str] = []
    seen: list[frozenset[int]] = []
    for line in text.split("\n"):
        grams = _grams(line, LINE_GRAM)
        if not grams or all(jaccard(grams, other) < ALIKE for other in seen[-WINDOW:]):
            lines.append(line)
            seen += [grams] if grams else []
    return "\n".join(lines)


def different(texts: Sequence[str]) -> list[int]:
    """The numbers of the texts that nearly repeat no earlier one; a text of fewer than five words must be equal.

    Candidates share a band of minhashes; each is then compared exactly.
    """
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    sets: dict[int, frozenset[int]] = {}
    for number, text in enumerate(texts):
        grams = _grams(text, TEXT_GRAM) or frozenset([_hash(text.strip().lower())])
        keys = list(_bands(grams))
        candidates = {other for key in keys for other in buckets[key]}
        if any(jaccard(grams, sets[other]) >= ALIKE for other in candidates):
            continue
        sets[number] = grams
        for key in keys:
            buckets[key].append(number)
    return list(sets)


def jaccard(some: frozenset[int], others: frozenset[int]) -> float:
    """The share of the elements of two sets that both have; 1 for two empty ones."""
    return len(some & others) / len(some | others) if some or others else 1.0


def _grams(text: str, count: int) -> frozenset[int]:
    """The hashes of the n-grams of words, without case and punctuation."""
    words = WORD.findall(text.lower())
    return frozenset(_hash(" ".join(words[i : i + count])) for i in range(len(words) - count + 1))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest())


def _bands(grams: Iterable[int]) -> Iterable[tuple[int, bytes]]:
    """The minhashes of a set, in bands: the least value of each of many hash functions over the elements."""
    elements = np.fromiter(grams, dtype=np.uint64)
    least = np.full(BANDS * BAND, -1, dtype=np.int64).view(np.uint64)  # the largest number
    for start in range(0, len(elements), 1024):  # bounds the memory of a long text
        part = elements[start : start + 1024]
        # Multiply-shift (arXiv:1504.06804): products wrap around at 64 bits, and the upper half is the hash.
        hashes = (_FACTORS[:, None] * part + _OFFSETS[:, None]) >> np.uint64(32)
        least = np.minimum(least, hashes.min(axis=1))
    return ((number, band.tobytes()) for number, band in enumerate(least.reshape(BANDS, BAND)))


def _constants(name: str) -> np.ndarray:
    values = [blake2b(f"{name}{n}".encode(), digest_size=8).digest() for n in range(BANDS * BAND)]
    return np.array([int.from_bytes(value) for value in values], dtype=np.uint64) | np.uint64(1)


_FACTORS, _OFFSETS = _constants("factor"), _constants("offset")
