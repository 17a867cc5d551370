"""Requests of every kind, drawn from a seed, for tests of the engine."""

import random
from typing import Any

WORDS = ("once", "upon", "a", "time", "there", "was", "little", "llama", "who", "read", "books", "all", "day", "long")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 11, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0.7, "logit_bias": {40: 3.0, 41: -100.0}},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 1.0, "regex": "[a-z]{2,9}( [a-z]+)*\\."},
    {
        "temperature": 1.0,
        "json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
    {"temperature": 1.1, "stop": ["a", "zq"]},
)


def requests(count: int, seed: int, *, longest: int, most: int) -> list[tuple[str, dict[str, Any]]]:
    """Prompts that often begin alike, at most `longest` characters long, with options of at most `most` tokens."""
    dice = random.Random(seed)
    made: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        shared = "Once upon a time there was a llama " * 3
        own = " ".join(dice.choices(WORDS, k=12))
        prompt = (shared[: dice.randrange(0, longest)] + own)[: dice.randrange(1, longest)]
        options = {"seed": seed * 1000 + number, "max_tokens": dice.randrange(1, most), **dice.choice(SETTINGS)}
        made.append((prompt, options))
    return made
