"""The prompts of prompts.toml: what the corpus may not hold."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def read_prompts() -> dict[str, Any]:
    """The rule, the prompts that are plain texts (`text`), and those that are a user's messages (`chat`)."""
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))


@cache
def _pattern() -> re.Pattern[str]:
    prompts = [*read_prompts()["text"], *read_prompts()["chat"]]
    return re.compile("|".join(re.escape(_plain(prompt)) + r"(?!\w)" for prompt in prompts))


def holds_prompt(text: str) -> bool:
    """Whether a text holds one of the 60 prompts, whatever its case, its spaces and the mark it ends with."""
    return _pattern().search(_plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".,:!?")
