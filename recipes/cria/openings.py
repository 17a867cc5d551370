"""Plain texts whose beginnings may be anyone's: the best of a thing, first days, letters, lives, what is to do."""

from random import Random

from recipes.cria.grammar import expand, read_templates
from recipes.cria.plain import listed
from recipes.cria.slots import LISTS, Row, Slots

_TEXTS = read_templates("openings.toml")
_BYE = read_templates("plain.toml")["letters"]["bye"]
_KINDS = {
    "best": 8, "favorite": 9, "nth_day": 10, "night": 7, "cause": 9, "meeting": 10, "life": 10, "work": 5, "colors": 6,
}  # fmt: skip


def beginning(rng: Random) -> str:
    """One to three sentences of a kind; what follows the first belongs to it."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    beats = rng.choice(_TEXTS["openings"][kind]).split(" / ")
    return expand(" ".join(beats[: rng.choice((1, 1, 2, 2, 3))]), rng, Slots(rng)).strip()


def line_letter(rng: Random, *, to: str = "") -> str:
    """A letter, mostly in one line; to: how it calls whom it is for."""
    return _written(rng, _TEXTS["letters"]["texts"], to=to or _TEXTS["letters"]["to"])


def wish_letter(rng: Random, *, figure: Row | None = None) -> str:
    """A letter to someone who brings gifts, or what one believes to do so."""
    return _written(rng, _TEXTS["letters"]["wishes"], figure=figure)


def _written(rng: Random, texts: list[str], **given: str | Row | None) -> str:
    slots = Slots(rng)
    slots.update({name: value for name, value in given.items() if value} | {"bye": _BYE})
    text = expand(rng.choice(texts), rng, slots).replace("  ", " ").strip()
    if rng.random() < 0.7:
        return text
    salutation, _, body = text.partition(", ")
    body, _, name = body.rpartition(" ")
    return f"{salutation},\n\n{body[0].upper()}{body[1:]}\n{name}" if text[-1] not in ".!?" else text


def chores(rng: Random) -> str:
    """Things to do, each once."""
    return listed(rng, rng.sample(LISTS["chore"], rng.randint(2, 6)))


def todo(rng: Random) -> str:
    """A list of things to do under its title, mostly in one line."""
    title = expand(rng.choice(_TEXTS["todo"]["titles"]), rng, Slots(rng))
    text = chores(rng)
    if "\n" in text and rng.random() < 0.6:
        text = ", ".join(line.partition(" ")[2].lower() for line in text.split("\n")) + "."
        text = text[0].upper() + text[1:] if rng.random() < 0.5 else text
    return f"{title}{chr(10) if chr(10) in text else ' '}{text}"


OPENINGS = {beginning: 74, line_letter: 9, wish_letter: 6, todo: 8}


def opening(rng: Random) -> str:
    """A plain text of any of these kinds."""
    return rng.choices(list(OPENINGS), list(OPENINGS.values()))[0](rng)
