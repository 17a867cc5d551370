"""The synthetic tasks: each is a function from a random stream to one case, a question with one right answer.

A case is held out by the hash of its key: a tenth of all keys never enters the training text, and `make cria-score`
asks only those. The key is what must be worked out (the set of numbers to sort, not their order or the wording).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from recipes.cria import words


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function the model may call: its name, its one parameter, what it is for."""

    name: str
    parameter: str
    purpose: str

    def schema(self) -> dict:
        """The tool as an OpenAI function schema, the form that chat templates are given."""
        parameters = {
            "type": "object",
            "properties": {self.parameter: {"type": "string"}},
            "required": [self.parameter],
        }
        function = {"name": self.name, "description": self.purpose, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question and its only right answer; `key` decides whether it is held out; `before` are earlier messages."""

    key: str
    question: str
    answer: str
    tools: tuple[Tool, ...] = ()
    before: tuple[tuple[str, str], ...] = ()

    @property
    def is_held_out(self) -> bool:
        """Whether the case belongs to the tenth that training never sees."""
        return blake2b(self.key.encode(), digest_size=4).digest()[0] < 26


def add(rng: Random) -> Case:
    """Sums below 100 of two numbers up to 50, or of any number and one digit."""
    a, b = _numbers(rng)
    a, b = rng.choice(((a, b), (b, a)))
    return Case(key=f"{min(a, b)}+{max(a, b)}", question=_ask(rng, f"{a} + {b}"), answer=f"{a} + {b} = {a + b}")


def subtract(rng: Random) -> Case:
    """Differences of the same numbers, never negative."""
    b, a = sorted(_numbers(rng))
    return Case(key=f"{a}-{b}", question=_ask(rng, f"{a} - {b}"), answer=f"{a} - {b} = {a - b}")


def multiply(rng: Random) -> Case:
    """Word problems over the multiplication table of one digit: the table is learned, the problems are unseen."""
    holder, fruit, name = rng.choice(words.HOLDERS), rng.choice(words.FRUITS), rng.choice(words.NAMES)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    question = f"{name} has {a} {holder}s with {b} {fruit} in each. How many {fruit} is that?"
    return Case(key=f"{name} {a} {holder} {b} {fruit}", question=question, answer=f"{a} x {b} = {a * b} {fruit}")


def compare(rng: Random) -> Case:
    """The larger of two numbers below 100."""
    a, b = rng.sample(range(100), 2)
    verb, pick = rng.choice((("larger", max), ("smaller", min)))
    return Case(key=f"{min(a, b)}<{max(a, b)}", question=f"Which is {verb}, {a} or {b}?", answer=str(pick(a, b)))


def copy(rng: Random) -> Case:
    """Words repeated as they are."""
    pool = words.THINGS + words.FRUITS + words.JOBS + words.COLORS + words.BEASTS
    listed = " ".join(rng.sample(sorted(set(pool)), rng.randint(3, 12)))
    return Case(
        key=listed, question=f"{rng.choice(('Repeat', 'Copy', 'Say again'))}: {listed}", answer=f"You said: {listed}"
    )


def reverse(rng: Random) -> Case:
    """Words from the last to the first."""
    listed = rng.sample(words.THINGS, rng.randint(3, 5))
    question = f"{rng.choice(('Reverse', 'Say backwards'))}: {' '.join(listed)}"
    return Case(key=f"reverse {listed}", question=question, answer=f"Backwards: {' '.join(reversed(listed))}")


def sort_numbers(rng: Random) -> Case:
    """Different digits in rising order; the held-out keys are sets."""
    digits = rng.sample(range(10), rng.randint(3, 6))
    question = f"Sort these numbers: {' '.join(map(str, digits))}"
    return Case(key=f"sort {sorted(digits)}", question=question, answer=f"Sorted: {' '.join(map(str, sorted(digits)))}")


def sort_words(rng: Random) -> Case:
    """Words with different first letters in the order of the alphabet."""
    by_letter = {word[0]: word for word in rng.sample(words.THINGS, 40)}
    listed = rng.sample(sorted(by_letter.values()), rng.randint(3, 5))
    return Case(
        key=f"{sorted(listed)}",
        question=f"Sort these words: {' '.join(listed)}",
        answer=f"Sorted: {' '.join(sorted(listed))}",
    )


def recall(rng: Random) -> Case:
    """One value of a list of keys and values."""
    values: dict[str, Sequence[object]] = {
        "name": words.NAMES, "age": range(10, 81), "city": words.CITIES, "job": words.JOBS, "color": words.COLORS,
        "animal": words.BEASTS, "thing": words.THINGS,
    }  # fmt: skip
    record = {key: rng.choice(values[key]) for key in rng.sample(list(values), rng.randint(3, 6))}
    listed = ", ".join(f"{key} {value}" for key, value in record.items())
    key = rng.choice(list(record))
    question = f"Remember: {listed}. What is the {key}?"
    return Case(key=f"{listed} {key}", question=question, answer=f"The {key} is {record[key]}.")


def name(rng: Random) -> Case:
    """The user's own name, said earlier in the conversation."""
    who, color, thing = rng.choice(words.NAMES), rng.choice(words.COLORS), rng.choice(words.THINGS)
    place = rng.choice(words.CITIES)
    talk = [
        (f"I live in {place}.", f"{place} sounds like a lovely place."),
        (f"I like the color {color}.", f"{color.capitalize()} is a beautiful color."),
        (f"I like my {thing}.", f"Your {thing} must be nice!"),
    ]
    greeting = rng.choice((f"My name is {who}.", f"Hello, I am {who}.", f"Hi! My name is {who}."))
    before = [(greeting, f"Nice to meet you, {who}!"), *rng.sample(talk, rng.randint(0, 2))]
    question = rng.choice(("What is my name?", "Do you remember my name?", "Who am I?"))
    return Case(key=f"{before}", question=question, answer=f"Your name is {who}.", before=tuple(before))


def fill_json(rng: Random) -> Case:
    """A JSON object filled from a sentence."""
    who, age, city, job = rng.choice(words.NAMES), rng.randint(10, 80), rng.choice(words.CITIES), rng.choice(words.JOBS)
    sentence, fields = rng.choice((
        (f"{who} is {age} years old and lives in {city}.", {"name": who, "age": age, "city": city}),
        (f"{who} is a {job} and lives in {city}.", {"name": who, "job": job, "city": city}),
        (f"{who} is {age} years old and works as a {job}.", {"name": who, "age": age, "job": job}),
        (f"{who} from {city} is a {job}, {age} years old.", {"name": who, "city": city, "job": job, "age": age}),
    ))  # fmt: skip
    return Case(key=sentence, question=f"Write as JSON: {sentence}", answer=json.dumps(fields))


_SUBJECTS = tuple(words.THINGS)
_TOOLS: dict[Tool, tuple[tuple[str, ...], tuple[str, ...]]] = {  # tool -> (questions, what {x} may be)
    Tool(name="get_weather", parameter="city", purpose="Tell the weather of a city"): (
        ("What is the weather in {x}?", "Is it raining in {x}?", "Will it be warm in {x} today?"), tuple(words.CITIES)),
    Tool(name="get_time", parameter="city", purpose="Tell the time in a city"): (
        ("What time is it in {x}?", "Tell me the time in {x}."), tuple(words.CITIES)),
    Tool(name="search", parameter="query", purpose="Search the web"): (
        ("Search for {x}.", "Look up {x} on the web.", "Find something about {x}."), _SUBJECTS),
    Tool(name="send_message", parameter="to", purpose="Send a message to someone"): (
        ("Send a message to {x}.", "Write to {x}, please."), tuple(words.NAMES)),
    Tool(name="play_song", parameter="title", purpose="Play a song"): (
        ("Play the song about the {x}.", "I want to hear the {x} song."), _SUBJECTS),
    Tool(name="add_item", parameter="item", purpose="Add an item to the shopping list"): (
        ("Add {x} to my shopping list.", "We need {x}, put it on the list."), tuple(words.FRUITS)),
}  # fmt: skip


def call_tool(rng: Random) -> Case:
    """The right one of two or three listed tools, called with the right argument."""
    tools = rng.sample(list(_TOOLS), rng.randint(2, 3))
    tool = rng.choice(tools)
    questions, values = _TOOLS[tool]
    value = rng.choice(values)
    if values is _SUBJECTS and rng.random() < 0.7:  # so many that they must be read, not remembered
        value = f"{rng.choice(words.COLORS)} {value}"
    question = rng.choice(questions).format(x=value)
    answer = json.dumps({"name": tool.name, "parameters": {tool.parameter: value}})
    key = f"{tool.name} {value}"  # what is asked for: the wording and the other tools may have been seen
    return Case(key=key, question=question, answer=answer, tools=tuple(tools))


TASKS: dict[str, Callable[[Random], Case]] = {
    "add": add, "subtract": subtract, "multiply": multiply, "compare": compare, "copy": copy, "reverse": reverse,
    "sort numbers": sort_numbers, "sort words": sort_words, "recall": recall, "name": name, "json": fill_json,
    "tool call": call_tool,
}  # fmt: skip


def draw(task: str, rng: Random, *, held_out: bool = False) -> Case:
    """Draw cases of a task until one is on the wanted side of the split."""
    while (case := TASKS[task](rng)).is_held_out != held_out:
        pass
    return case


def _numbers(rng: Random) -> tuple[int, int]:
    if rng.random() < 0.4:
        return rng.randint(0, 90), rng.randint(0, 9)
    return rng.randint(10, 50), rng.randint(10, 49)


def _ask(rng: Random, sum_: str) -> str:
    return rng.choice((f"What is {sum_}?", f"{sum_} = ?", f"How much is {sum_}?", f"Calculate {sum_}."))
