"""Prompts: the same random tokens in every call and every process."""

from random import Random


def prompt(vocabulary: int, length: int, row: int = 0) -> list[int]:
    """Random token ids from 1 to below `vocabulary`; each row of a batch gets different ones."""
    draw = Random(row)
    return [draw.randrange(1, vocabulary) for _ in range(length)]
