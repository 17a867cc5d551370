"""Plain texts: sentences that belong together, letters, rhymes, lists, how to make a thing; each may be very short."""

from random import Random

from recipes.cria.grammar import expand, read_templates
from recipes.cria.objects import labelled_object
from recipes.cria.slots import CATEGORIES, Row, Slots, any_noun, odd_word

_TEXTS = read_templates("plain.toml")
_EVENTS = [row.split("; ") for row in read_templates("asks.toml")["events"]["rows"]]
_ABOUT_EVENTS = [text for text in _TEXTS["texts"]["clauses"] if "{event" in text]
_KINDS = {"clauses": 9, "days": 7, "myself": 5, "liking": 5, "beasts": 4, "things": 4}
_CARDS = (  # a kind, and the number of its text
    ("a thank-you card", 0), ("a card with thanks", 0), ("a postcard", 2), ("a postcard from the sea", 2),
    ("an apology", 3), ("a letter of apology", 3), ("a birthday card", 4), ("a birthday letter", 4),
    ("birthday wishes", 4), ("an invitation", 5), ("an invitation to a party", 5), ("a short letter", 1),
)  # fmt: skip
_NUMBERS = ("two", "three", "four", "five", "six", "seven")


def passage(rng: Random) -> str:
    """One to four sentences that belong together."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    beats = rng.choice(_TEXTS["texts"][kind]).split(" / ")
    return expand(" ".join(beats[: rng.choice((1, 2, 3, 4, 4))]), rng, Slots(rng))


def event(rng: Random) -> str:
    """What happened, and what came of it: as `passage` tells it, of other events."""
    slots = Slots(rng)
    slots["event"] = Row(**dict(zip(("what", "so", "but"), rng.choice(_EVENTS), strict=True)))
    beats = rng.choice(_ABOUT_EVENTS).split(" / ")
    return expand(" ".join(beats[: rng.choice((1, 2, 3))]), rng, slots)


def how_to(rng: Random) -> str:
    """How a thing is made."""
    return expand(rng.choice(_TEXTS["how_to"]["texts"]).replace(" / ", " "), rng, Slots(rng))


def letter(rng: Random, *, friend: str = "", text: str = "") -> str:
    """A letter to someone. text: the template, one of all if not given."""
    slots = Slots(rng)
    slots.update({name: _TEXTS["letters"][name] for name in ("bye", "news", "visit")} | {"news2": ""})
    if friend:
        slots["friend"] = friend
    return expand(text or rng.choice(_TEXTS["letters"]["texts"]), rng, slots).replace(" \n", "\n")


def card(rng: Random, *, friend: str) -> tuple[str, str]:
    """What kind of card or letter it is, and its text."""
    what, number = rng.choice(_CARDS)
    return what, letter(rng, friend=friend, text=_TEXTS["letters"]["texts"][number])


def rhyme(rng: Random, *, topic: str = "") -> str:
    """Two or four lines in pairs that rhyme, about a topic ("the sea")."""
    slots = Slots(rng)
    drawn = expand(
        "[the {topical}|the {topical}|my {topical}|the little {beast}|the {color} {beast}|spring]", rng, slots
    )
    slots["x"] = topic or drawn[0].lower() + drawn[1:]
    lines: list[str] = []
    for group in rng.sample(_TEXTS["rhymes"]["groups"], rng.choice((1, 2, 2))):
        first = rng.choice(group["topic"]) if not lines else rng.choice(group["rest"]).rstrip(".") + ","
        lines += [first, rng.choice([line for line in group["rest"] if line.rstrip(".,") != first.rstrip(".,")])]
    return "\n".join(line[0].upper() + line[1:] for line in expand("\n".join(lines), rng, slots).split("\n"))


def listed(rng: Random, members: list[str]) -> str:
    """Members of a category as a list: numbered, with dashes, or in a line."""
    items = [member[0].upper() + member[1:] for member in members]
    form = rng.random()
    if form < 0.5:
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    if form < 0.7:
        return "\n".join(f"- {item}" for item in items)
    return _in_a_line(members)


def drawn_list(rng: Random, *, category: str = "") -> tuple[str, str, list[str]]:
    """A category, how many of it ("three", sometimes "3", or none), and as many members."""
    category = category or rng.choice(list(CATEGORIES))
    members = CATEGORIES[category]
    count = rng.randint(2, min(7, len(members)))
    number = _NUMBERS[count - 2] if rng.random() < 0.8 else str(count)
    return category, number, rng.sample(members, count)


def plain_list(rng: Random) -> str:
    """A list under its title."""
    category, number, members = drawn_list(rng)
    titles = (f"{number} {category}:", f"a list of {category}:", f"{category}:", f"a list of {number} {category}:",
              f"here are {number} {category}:", f"my favorite {category}:", f"some {category}:")  # fmt: skip
    if category in ("fruits", "vegetables", "foods", "drinks", "tools", "clothes", "toys"):
        titles = (*titles, "shopping list:", "my shopping list:", "things to buy:", "we need:")
    title = rng.choice(titles)
    text = listed(rng, members)
    return f"{title[0].upper()}{title[1:]}{chr(10) if chr(10) in text else ' '}{text}"


def echo(rng: Random) -> str:
    """Words or a sentence to be repeated: of known words, or of none."""
    draw = rng.random()
    if draw < 0.25:
        return passage(rng).split(". ")[0].split("\n")[0].rstrip(".")
    nouns = [any_noun(rng) if rng.random() < 0.75 else odd_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 5)))]
    if draw < 0.6 and len(nouns) > 1:
        nouns = [expand("{color}", rng, Slots(rng)), *nouns[1:]]
    text = " ".join(nouns)
    return rng.choice((text, text, text.capitalize(), f"the {text}"))


PLAIN = {passage: 70, letter: 7, rhyme: 6, plain_list: 6, how_to: 4, labelled_object: 7}


def plain(rng: Random) -> str:
    """A plain text of any kind."""
    return rng.choices(list(PLAIN), list(PLAIN.values()))[0](rng)


def _in_a_line(members: list[str]) -> str:
    text = ", ".join(members[:-1]) + f" and {members[-1]}."
    return text[0].upper() + text[1:]
