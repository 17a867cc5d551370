"""What templates speak of: rows of the tables of world.toml and things.toml, drawn when a template first names them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from types import SimpleNamespace

from recipes.cria import words
from recipes.cria.grammar import read_templates

_WORLD, _THINGS = read_templates("world.toml"), read_templates("things.toml")
_TABLES = _WORLD | _THINGS
LISTS: Mapping[str, list[str]] = _WORLD["lists"] | _THINGS["lists"]
_PARTS: Mapping[str, list[str]] = _THINGS["parts"]
_PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
_THEM = {"it": "it", "they": "them"}
_SYLLABLES = (
    "ba", "dor", "fi", "gal", "ho", "ki", "lum", "ma", "nor", "pe", "qui", "ran", "so", "tel", "u", "vim", "wo", "xa",
    "yl", "zor", "ster", "blo", "cri", "dra", "fen", "glu", "tri", "plo", "shi", "tha",
)  # fmt: skip
CATEGORIES: Mapping[str, list[str]] = _WORLD["categories"]
_PHRASES = ("things to do", "good habits")  # categories that are no nouns
_COUNTED = (
    "fruits", "vegetables", "animals", "birds", "tools", "toys", "flowers", "instruments", "clothes", "vehicles",
    "insects",
)  # fmt: skip
_UNCOUNTED = (  # nouns that are no thing, of which there may be two
    "corn", "iron", "milk", "oil", "paper", "rain", "sand", "water", "wind", "bread", "spinach", "night", "year",
    "uncle", "king", "queen", "idea", "unit", "voice",
)  # fmt: skip


class Row(SimpleNamespace):
    """A row of a table: its cells by the names of the columns; as text, its first cell."""

    def __format__(self, spec: str) -> str:
        return str(next(iter(vars(self).values())))


@cache
def table(name: str) -> tuple[Row, ...]:
    """The rows of a table; who has a pronoun has all its cases."""
    columns = _TABLES[name]["columns"].split("; ")
    rows = [Row(**dict(zip(columns, cells.split("; "), strict=True))) for cells in _TABLES[name]["rows"]]
    for row in rows:
        if "he" in columns:
            row.person = "woman" if row.he == "she" else "man"
            row.he, row.his, row.him = _PRONOUNS[row.he]
        if name == "liked":
            row.them = _THEM[row.it]
    return tuple(rows)


def odd_word(rng: Random) -> str:
    """A word that is none, of two to four syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def long_word(rng: Random) -> str:
    """A word as scientists make them, of two to four parts, or one of syllables."""
    if rng.random() < 0.2:
        return odd_word(rng)
    return "".join(rng.choice(_PARTS["morphemes"]) for _ in range(rng.choice((2, 3, 3, 4))))


def any_name(rng: Random, known: Sequence[str] = ()) -> str:
    """A name of a person: one of those that are known, or one that nobody has."""
    if rng.random() < 0.5:
        return rng.choice(known or (*LISTS["women"], *LISTS["men"], *words.GIRLS, *words.BOYS))
    return "".join(rng.choice(_PARTS[part]) for part in ("start", "middle", "end"))


def any_noun(rng: Random) -> str:
    """A noun of any of the lists."""
    category = rng.choice([category for category in CATEGORIES if category not in _PHRASES])
    return rng.choice((*words.THINGS, *words.BEASTS, *words.FRUITS, *CATEGORIES[category]))


def countable(rng: Random) -> str:
    """A noun that "a" may stand before: a known one, or one made of two."""
    if rng.random() < 0.35:
        return rng.choice(_PARTS["first"]) + rng.choice(_PARTS["second"])
    pool = rng.choice((words.THINGS, words.BEASTS, words.TOYS, *(CATEGORIES[name] for name in _COUNTED)))
    return rng.choice([noun for noun in pool if noun not in _UNCOUNTED])


def _somewhere(rng: Random) -> str:
    """Where a thing may be: in some weather, at a known spot, or near another thing."""
    near = f"{rng.choice(LISTS['prep'])} the {rng.choice((rng.choice(LISTS['spots']), countable(rng)))}"
    return rng.choice((rng.choice(LISTS["air"]), rng.choice(LISTS["spot"]), near))


def _place(rng: Random) -> str:
    return rng.choice((rng.choice(words.CITIES), rng.choice(LISTS["of"]), odd_word(rng).capitalize()))


_DRAWS: Mapping[str, Callable[[Random], str]] = {
    "boy": lambda rng: rng.choice(words.BOYS),
    "girl": lambda rng: rng.choice(words.GIRLS),
    "name": lambda rng: rng.choice(words.GIRLS + words.BOYS),
    "pet": lambda rng: rng.choice(words.PETS),
    "odd": odd_word,
    "asked": lambda rng: rng.choice((rng.choice(LISTS["topic"]), odd_word(rng))),
    "where": _place,
    "who": lambda rng: rng.choice((rng.choice(words.NAMES), odd_word(rng).capitalize())),
    "team": lambda rng: f"the {odd_word(rng).capitalize()}s",
    "n": lambda rng: str(rng.randint(5, 80)),
    "any_name": any_name,
    "her": lambda rng: any_name(rng, LISTS["women"]),
    "him": lambda rng: any_name(rng, LISTS["men"]),
    "long": long_word,
    "noun": countable,
    "somewhere": _somewhere,
    "word": any_noun,
    "x": any_noun,
    "y": any_noun,
}


class Slots(dict[str, str | Row]):
    """Slots that draw themselves: {city} and {city2} are two different rows of one table."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng

    def __missing__(self, key: str) -> str | Row:
        name = key.rstrip("0123456789")
        taken = [value for other, value in self.items() if other.rstrip("0123456789") == name]
        value = self._draw(name)
        for _ in range(19):
            if value not in taken:
                break
            value = self._draw(name)
        self[key] = value
        return value

    def _draw(self, name: str) -> str | Row:
        return _DRAWS[name](self._rng) if name in _DRAWS else self._rng.choice(LISTS.get(name) or table(name))
