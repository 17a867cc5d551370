"""Small JSON objects: a person, a book, a shop's item, by the fields that are asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random

from recipes.cria import words
from recipes.cria.grammar import expand, read_templates
from recipes.cria.slots import CATEGORIES, Slots

Draw = Callable[[Random], object]

_TEXTS = read_templates("objects.toml")
_ASK: Mapping[str, list[str]] = _TEXTS["wordings"]
_TYPES = {str: "string", int: "number", float: "number", bool: "true or false", list: "list"}
OBJECTS: Mapping[str, list[str]] = _TEXTS["kinds"]


def _text(template: str) -> Draw:
    return lambda rng: expand(template, rng, Slots(rng))


def _word(template: str) -> Draw:
    def draw(rng: Random) -> object:
        text = expand(template, rng, Slots(rng))
        return text[0].lower() + text[1:]

    return draw


def _one(pool: Sequence[object]) -> Draw:
    return lambda rng: rng.choice(pool)


def _few(*pool: str) -> Draw:
    return lambda rng: rng.sample(pool, rng.randint(1, 3))


def _between(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


def _yes_or_no(rng: Random) -> object:
    return rng.random() < 0.5


_TITLE = (
    "[The|My|A] [Red|Blue|Little|Old|Lost|Golden|Quiet|Last|Brave] [Kite|House|River|Fox|Star|Boat|Garden|King|Bird]"
)
_PERSON = words.GIRLS + words.BOYS
_HOBBIES = ("swimming", "reading", "singing", "chess", "dancing", "cooking", "running", "painting")
VALUES: Mapping[str, Draw] = {
    "name": _one(words.NAMES), "first_name": _one(_PERSON), "age": _between(1, 90), "city": _one(words.CITIES),
    "job": _one(words.JOBS), "color": _one(words.COLORS), "animal": _one(words.BEASTS),
    "country": _one(CATEGORIES["countries"]),
    "email": lambda rng: f"{rng.choice(words.NAMES).lower()}@example.com",
    "hobby": _word("{act.ing}"), "hobbies": _few(*_HOBBIES), "is_student": _yes_or_no, "is_open": _yes_or_no,
    "done": _yes_or_no, "in_stock": _yes_or_no, "active": _yes_or_no, "happy": _yes_or_no, "title": _text(_TITLE),
    "author": _one(_PERSON), "year": _between(1900, 2025), "pages": _between(20, 600),
    "price": lambda rng: rng.randint(50, 9000) / 100, "quantity": _between(1, 30), "count": _between(1, 50),
    "item": _one(words.FRUITS), "product": _one(words.TOYS), "size": _word("[small|medium|large]"),
    "weight": _between(1, 200), "height": _between(1, 200), "temperature": _between(1, 35),
    "weather": _word("{weather}"), "day": _text("{day}"), "month": _one(CATEGORIES["months"]),
    "time": lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 11) * 5:02}", "place": _word("{place.name}"),
    "date": lambda rng: f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
    "food": _word("{meal}"), "fruit": _one(CATEGORIES["fruits"]), "sound": _word("[loud|soft|sweet|deep]"),
    "legs": _one((2, 4, 6, 8)), "id": _between(1, 999), "score": _between(0, 100), "rating": _between(1, 5),
    "tags": _few("new", "old", "red", "big", "fun", "home", "food"), "colors": _few(*words.COLORS),
    "answer": _word("[yes|no|maybe]"), "feeling": _word("{feeling}"), "text": _text("{saying}"),
    "message": _text("[Hello!|See you {tomorrow}.|I am {feeling}.|{saying}]"), "minutes": _between(1, 90),
    "ingredients": _few("flour", "eggs", "milk", "salt", "butter", "sugar", "rice"),
    "population": _between(100, 9000000), "language": _text("{language}"), "lives_in": _word("{house}"),
    "type": _word("{object.kind}"),
}  # fmt: skip


def draw_object(rng: Random, kind: str) -> dict[str, object]:
    """An object of a kind with some of its fields: from the first ones mostly."""
    fields = OBJECTS[kind]
    count = min(rng.randint(1, 4), len(fields))
    names = fields[:count] if rng.random() < 0.5 else rng.sample(fields, count)
    return {name: VALUES[name](rng) for name in names}


def any_object(rng: Random) -> dict[str, object]:
    """An object of any fields."""
    return {name: VALUES[name](rng) for name in rng.sample(list(VALUES), rng.randint(1, 4))}


def labelled_object(rng: Random) -> str:
    """A text that is an object, mostly after what it is: 'A person: {"name": "Mia"}'."""
    if rng.random() < 0.2:
        return json.dumps(any_object(rng))
    kind = rng.choice(list(OBJECTS))
    label = rng.choice(_ASK["labels"]).format(**_called(kind))
    return label + json.dumps(draw_object(rng, kind))


def asked_object(rng: Random) -> tuple[str, str]:
    """A request for an object, by its kind or fields or both, and the object."""
    kind = rng.choice(list(OBJECTS))
    value = draw_object(rng, kind) if rng.random() < 0.6 else any_object(rng)
    names = list(value)
    slots = {
        **_called(kind),
        "fields": " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))),
        "blank": "{" + ", ".join(f'"{name}": ...' for name in names) + "}",
        "typed": "{" + ", ".join(f'"{name}": {_TYPES[type(value[name])]}' for name in names) + "}",
        "verb": rng.choice(_ASK["verbs"]),
    }
    slots["what"] = rng.choice(_ASK["what"]).format(**slots)
    wordings = _ASK["known" if set(names) <= set(OBJECTS[kind]) else "any"]
    return rng.choice(wordings).format(**slots), json.dumps(value)


def _called(kind: str) -> dict[str, str]:
    an = f"{'an' if kind[0] in 'aeo' else 'a'} {kind}"
    return {"an": an, "An": an[0].upper() + an[1:], "Kind": kind.capitalize()}
