"""The suite that `llamita eval` has built in: `python -m recipes.cria.suite` writes llamita/evaluation/suite/*.jsonl.

Exact tasks: the first cases of those that `recipes.cria.score` asks, which training never sees. Choice tasks: the last
sentence of an unseen story among those of others, and the small facts, which cria was trained on.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from recipes.cria import chats, tasks
from recipes.cria.stories import story

FOLDER = Path("llamita/evaluation/suite")
COUNT = 100  # cases of a task
CHOICES = 4

Row = dict[str, Any]


def exact(task: str) -> list[Row]:
    """Held-out cases of a task of the recipe."""
    rng = Random(f"score/{task}")
    return [_row(tasks.draw(task, rng, held_out=True)) for _ in range(COUNT)]


def _row(case: tasks.Case) -> Row:
    turns = chats.solved([case])[:-1]
    row: Row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    if case.tools:
        row["tools"] = [tool.schema() for tool in case.tools]
    return row | {"answer": case.answer}


def story_endings() -> list[Row]:
    """A story without its last sentence, which is to be found among the last sentences of others."""
    rng, rows = Random("suite/stories"), []
    texts = [_cut(story(rng)) for _ in range(COUNT * CHOICES)]
    for number in range(0, len(texts), CHOICES):
        (beginning, ending), *others = texts[number : number + CHOICES]
        choices = list(dict.fromkeys([ending, *(other for _, other in others)]))
        rng.shuffle(choices)
        rows.append({"prompt": beginning, "choices": choices, "answer": choices.index(ending)})
    return [row for row in rows if len(row["choices"]) > 1]


def _cut(text: str) -> tuple[str, str]:
    """A text up to its last sentence, and that sentence with the space before it."""
    ends = [match.end() for match in re.finditer(r'[.!?]"?(?=\s)', text)]
    return text[: ends[-1]], text[ends[-1] :].replace("\n\n", " ")


def facts() -> list[Row]:
    """Capitals, opposites, colors and sounds, each among three others of its kind."""
    rng, rows = Random("suite/facts"), []
    questions = {
        "capitals": ("What is the capital of {}?", "The capital of {} is {}."),
        "opposites": ("What is the opposite of {}?", "The opposite of {} is {}."),
        "colors": ("What color is {}?", "{} is {}."),
        "sounds": ("What sound does a {} make?", "A {} {}."),
    }
    for kind, (question, answer) in questions.items():
        pairs: dict[str, str] = chats.FACTS[kind]
        for asked, known in pairs.items():
            others = sorted(set(pairs.values()) - {known})
            shown = asked[0].upper() + asked[1:] if kind == "colors" else asked
            options = [answer.format(shown, one) for one in (known, *rng.sample(others, CHOICES - 1))]
            choices = rng.sample(options, CHOICES)
            messages = [{"role": "user", "content": question.format(asked)}]
            rows.append({"messages": messages, "choices": choices, "answer": choices.index(options[0])})
    return rows


SUITE: dict[str, Callable[[], list[Row]]] = {
    **{task.replace(" ", "_"): lambda task=task: exact(task) for task in tasks.TASKS},
    "story_endings": story_endings,
    "facts": facts,
}


def text(rows: list[Row]) -> str:
    """The rows as a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    for name, rows in SUITE.items():
        (FOLDER / f"{name}.jsonl").write_text(text(rows()), encoding="utf-8")
