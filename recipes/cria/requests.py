"""What visitors ask of things, dishes, animals and places; greetings to anyone; words that nobody knows."""

from collections.abc import Callable, Mapping
from random import Random

from recipes.cria import words
from recipes.cria.grammar import expand, read_templates
from recipes.cria.openings import chores, line_letter, wish_letter
from recipes.cria.plain import listed
from recipes.cria.slots import Row, Slots, countable, long_word, odd_word, table
from recipes.cria.talk import Pair, spoken

_TEXTS = read_templates("requests.toml")
_ASK: Mapping[str, list[str]] = _TEXTS["wordings"]
_RECIPIENTS = (  # to whom, and how the letter calls them
    ("{any_name}", "{any_name}"), ("my friend {any_name}", "{any_name}"), ("Aunt {her}", "Aunt {her}"),
    ("Uncle {him}", "Uncle {him}"), ("my {kin}", "{kin}"), ("my dear {kin}", "{kin}"),
)  # fmt: skip
_TIMES = {  # whether it is day or night then
    "": "day", " today": "day", " in the morning": "day", " by day": "day", " in summer": "day", " at noon": "day",
    " at night": "night", " in the evening": "night", " in the dark": "night", " after dark": "night",
}  # fmt: skip


def _asked(rng: Random, wording: str, **slots: str | Row) -> str:
    return expand(rng.choice(_ASK[wording]), rng, _with(rng, slots))


def _with(rng: Random, given: Mapping[str, str | Row]) -> Slots:
    slots = Slots(rng)
    slots.update(given)
    return slots


def _said(text: str, rng: Random) -> str:
    return expand(text, rng, {})


def _requested(rng: Random) -> Pair:
    question, answer = spoken(rng.choice(_TEXTS["requests"]), rng, Slots(rng))
    return question.replace(",.", ".").replace(",,", ","), answer


def _repeat(rng: Random) -> Pair:
    """Words to be repeated of which some are long, or none at all."""
    made = [rng.choice((long_word, long_word, countable, odd_word))(rng) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    text = " ".join(made)
    return rng.choice(_ASK["repeat"]).format(x=text), text


def _color(rng: Random) -> Pair:
    """A lemon is yellow."""
    thing = rng.choice(table("item") + table("stuff"))
    return _asked(rng, "color_of", x=f"{thing}"), _said(f"{thing} is {thing.color}.", rng)


def _is(rng: Random) -> Pair:
    """Yes, a lemon is yellow. No, a lemon is not sweet. It is sour."""
    thing = rng.choice(table("item") + table("stuff"))
    is_many = hasattr(thing, "many") and rng.random() < 0.3
    subject, verb, it_is = (thing.many, "are", "They are") if is_many else (f"{thing}", "is", "It is")
    right, wrong = thing.trait, thing.opposite
    if is_color := rng.random() < 0.6:
        right, wrong = thing.color, rng.choice([color for color in words.COLORS if color != thing.color])
    asked = rng.choice((right, wrong))
    answer = f"Yes, {subject} {verb} {right}."
    if asked == wrong:
        answer = f"No, {subject} {verb} {right}." if is_color else f"No, {subject} {verb} not {wrong}. {it_is} {right}."
    return _asked(rng, "are_many" if is_many else "is_one", x=subject, y=asked), _said(answer, rng)


def _kind(rng: Random) -> Pair:
    """No, a whale is an animal."""
    thing, other = rng.sample(table("item"), 2)
    asked = rng.choice((thing.kind, other.kind))
    verdict = "Yes" if asked == thing.kind else "No"
    return _asked(rng, "is_one", x=f"{thing}", y=asked), _said(f"{verdict}, {thing} is {thing.kind}.", rng)


def _needed(name: str) -> Callable[[Random], Pair]:
    def needed(rng: Random) -> Pair:
        """What a dish is made of, or what one needs for an occasion."""
        row = rng.choice(table(name))
        items = row.items.split(", ")
        return _asked(rng, name, x=f"{row}"), listed(
            rng, rng.sample(items, rng.randint(min(3, len(items)), len(items)))
        )

    return needed


def _way(rng: Random) -> Pair:
    """Bees fly with their thin wings."""
    row = rng.choice(table("way"))
    return _asked(rng, "way", x=row.many, y=row.do), _said(f"{row.many} {row.do} {row.how}.", rng)


def _sight(rng: Random) -> Pair:
    """At a harbor, you can see big ships and small boats."""
    row, time = rng.choice(table("sight")), rng.choice(list(_TIMES))
    where = f"{row.at} {rng.choice(('a', 'the'))} {row}{time}"
    who = rng.choice(("you", "I", "one", "we", "people"))
    seen = vars(row)[_TIMES[time]]
    can = "one can see" if who == "one" else "you can see"
    answer = rng.choice((f"{where}, {can} {seen}.", f"{can} {seen} {where}.", f"{can} {seen}."))
    return _asked(rng, "sight", who=who, where=where), _said(answer, rng)


def _wish(rng: Random) -> Pair:
    figure = rng.choice(table("figure"))
    return _asked(rng, "wish", figure=figure), wish_letter(rng, figure=figure)


def _letter(rng: Random) -> Pair:
    slots, (to, whom) = Slots(rng), rng.choice(_RECIPIENTS)
    question = _asked(rng, "letter", to=expand(to, rng, slots))
    return question, line_letter(rng, to=expand(whom, rng, slots))


def _chores(rng: Random) -> Pair:
    return _asked(rng, "chores"), chores(rng)


REQUESTS: Mapping[Callable[[Random], Pair], int] = {  # and how often it is drawn
    _requested: 44, _color: 4, _is: 10, _kind: 3, _needed("dish"): 6, _needed("occasion"): 4, _way: 8, _sight: 6,
    _wish: 2, _letter: 3, _chores: 2, _repeat: 6,
}  # fmt: skip


def request(rng: Random) -> Pair:
    """One question and its answer."""
    return rng.choices(list(REQUESTS), list(REQUESTS.values()))[0](rng)
