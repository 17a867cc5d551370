"""A tiny text grammar: `[a|b]` picks one alternative, `{slot}` reads a slot; both nest; seeded by the caller."""

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

_MARK = re.compile(r"[\[\]|]")
_ARTICLE = re.compile(r"\b([Aa]) (?=(?!unit|unif|univ)[aeiou])")
_SENTENCE = re.compile(r"((?:^|[.!?]|\.\")\s+|^)([a-z])")

Part = str | tuple["Sequence", ...]
Sequence = tuple[Part, ...]


def read_templates(name: str) -> dict[str, Any]:
    """A file of templates beside this one; `@phrase` in it stands for the template of that name under `phrases`."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    for phrase, template in tomllib.loads(text).get("phrases", {}).items():
        text = text.replace(f"@{phrase}", template)
    return tomllib.loads(text)


@lru_cache(maxsize=4096)  # texts whose slots are filled are parsed as well, and each but once
def _parse(template: str) -> Sequence:
    """Turn a template into nested parts: text, or a tuple of alternatives."""
    stack: list[list[list[Part]]] = [[[]]]  # open brackets > their alternatives > the parts of one
    position = 0
    for mark in _MARK.finditer(template):
        stack[-1][-1].append(template[position : mark.start()])
        position = mark.end()
        if mark[0] == "[":
            stack.append([[]])
        elif mark[0] == "|":
            stack[-1].append([])
        else:
            alternatives = tuple(tuple(parts) for parts in stack.pop())
            stack[-1][-1].append(alternatives)
    stack[-1][-1].append(template[position:])
    assert len(stack) == 1, f"unbalanced brackets in {template!r}"
    return tuple(stack[0][0])


def _choose(parts: Sequence, rng: Random) -> str:
    return "".join(part if isinstance(part, str) else _choose(rng.choice(part), rng) for part in parts)


def expand(template: str, rng: Random, slots: Mapping[str, object]) -> str:
    """Write out one text of a template; "a" before a vowel becomes "an", sentences get capitals."""
    text = _choose(_parse(template), rng)
    while "{" in text:  # a slot may hold a template of its own
        text = _choose(_parse(text.format_map(slots)), rng)
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), _ARTICLE.sub(r"\1n ", text))
