"""What the systems read: the same random tokens at each call, in every process."""

from random import Random


def prompt(vocabulary: int, length: int, row: int = 0) -> list[int]:
    """Token ids that are neither 0 nor beyond the vocabulary, others for each row of a batch."""
    draw = Random(row)
    return [draw.randrange(1, vocabulary) for _ in range(length)]
