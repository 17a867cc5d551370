"""What templates speak of: rows of the tables of world.toml, drawn when a template first names them."""

from collections.abc import Callable, Mapping
from functools import cache
from random import Random
from types import SimpleNamespace

from recipes.cria import words
from recipes.cria.grammar import read_templates

_WORLD = read_templates("world.toml")
_PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
_THEM = {"it": "it", "they": "them"}
_SYLLABLES = (
    "ba", "dor", "fi", "gal", "ho", "ki", "lum", "ma", "nor", "pe", "qui", "ran", "so", "tel", "u", "vim", "wo", "xa",
    "yl", "zor", "ster", "blo", "cri", "dra", "fen", "glu", "tri", "plo", "shi", "tha",
)  # fmt: skip
CATEGORIES: Mapping[str, list[str]] = _WORLD["categories"]


class Row(SimpleNamespace):
    """A row of a table: its cells by the names of the columns; as text, its first cell."""

    def __format__(self, spec: str) -> str:
        return str(next(iter(vars(self).values())))


@cache
def _table(name: str) -> tuple[str | Row, ...]:
    if name in _WORLD["lists"]:
        return tuple(_WORLD["lists"][name])
    columns = _WORLD[name]["columns"].split("; ")
    rows = [Row(**dict(zip(columns, cells.split("; "), strict=True))) for cells in _WORLD[name]["rows"]]
    for row in rows:
        if name == "person":
            row.he, row.his, row.him = _PRONOUNS[row.he]
        if name == "liked":
            row.them = _THEM[row.it]
    return tuple(rows)


def odd_word(rng: Random) -> str:
    """A word that is none, of two to four syllables."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def any_noun(rng: Random) -> str:
    """A noun of any of the lists."""
    return rng.choice((*words.THINGS, *words.BEASTS, *words.FRUITS, *rng.choice(list(CATEGORIES.values()))))


def _place(rng: Random) -> str:
    return rng.choice((rng.choice(words.CITIES), rng.choice(_WORLD["lists"]["of"]), odd_word(rng).capitalize()))


_DRAWS: Mapping[str, Callable[[Random], str]] = {
    "boy": lambda rng: rng.choice(words.BOYS),
    "girl": lambda rng: rng.choice(words.GIRLS),
    "name": lambda rng: rng.choice(words.GIRLS + words.BOYS),
    "pet": lambda rng: rng.choice(words.PETS),
    "odd": odd_word,
    "asked": lambda rng: rng.choice((rng.choice(_WORLD["lists"]["topic"]), odd_word(rng))),
    "where": _place,
    "who": lambda rng: rng.choice((rng.choice(words.NAMES), odd_word(rng).capitalize())),
    "team": lambda rng: f"the {odd_word(rng).capitalize()}s",
    "n": lambda rng: str(rng.randint(5, 80)),
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
        return _DRAWS[name](self._rng) if name in _DRAWS else self._rng.choice(_table(name))
