"""More of what visitors ask: greetings to pass on, comparisons, lists for a purpose, cards, and why."""

from collections.abc import Callable, Mapping
from random import Random

from recipes.cria import words
from recipes.cria.grammar import expand, read_templates
from recipes.cria.plain import card, listed
from recipes.cria.slots import CATEGORIES, Slots, countable
from recipes.cria.talk import Pair, spoken

_TEXTS = read_templates("asks.toml")
_VALUES: Mapping[str, list[str]] = _TEXTS["values"]
_ASK: Mapping[str, list[str]] = _TEXTS["wordings"]
_COMPARED = {
    "heavy": ("heavier", "lighter"), "fast": ("faster", "slower"), "long": ("longer", "shorter"),
    "old": ("older", "younger"), "hot": ("hotter", "colder"),
}  # fmt: skip
_WITHOUT_ARTICLE = ("ice", "milk", "tea", "fire")
_GREETINGS = ("hello", "hi", "good morning", "good evening", "good night", "goodbye", "thank you", "happy birthday")
_WHY = (
    "sky; blue", "sea; blue", "sun; hot", "snow; white", "moon; round", "night; dark", "fire; red", "ice; cold",
    "lemon; sour", "honey; sweet", "sea; salty", "forest; green", "wind; cold", "desert; dry", "stone; hard",
    "frog; green", "swan; white", "fox; red", "leaf; green", "coal; black",
)  # fmt: skip
_PURPOSES = {  # of a list: what is on it
    "shopping list": ("foods", "fruits", "vegetables", "drinks"), "packing list": ("clothes", "toys"),
    "list of tools": ("tools",), "list of guests": ("names",), "wish list": ("toys", "clothes"),
    "list of things to do": ("things to do",), "to-do list": ("things to do",),
}  # fmt: skip


def _asked(rng: Random) -> Pair:
    exchange, slots = rng.choice(_TEXTS["asks"]), Slots(rng)
    slots["thing"] = countable(rng)
    return spoken(exchange, rng, slots)


def _greet(rng: Random) -> Pair:
    """Hello, Anna!"""
    what, name = rng.choice(_GREETINGS), rng.choice(words.GIRLS + words.BOYS)
    kin = ("sister", "aunt") if name in words.GIRLS else ("brother", "uncle")
    one = rng.choice(("cousin", "friend", "neighbor", *kin))
    whom = rng.choice((name, f"my {one} {name}", f"my {one}, {name}", f"{name} from me", f"my friend {name}"))
    verb = rng.choice(("Say", "Please say", "Can you say", "Say", "Write"))
    end = "?" if verb.startswith("Can") else rng.choice((".", "!", "", ", please."))
    tail = rng.choice(("", "", " I hope you are well.", " I wish you a good day."))
    return f"{verb} {what} to {whom}{end}", f"{what.capitalize()}, {name}!{tail}"


def _greeted(rng: Random) -> Pair:
    """A greeting with a question behind it."""
    what = rng.choice(("Good morning", "Good evening", "Hello", "Hi", "Good day", "Hello there", "Good night"))
    asked, answer = rng.choice(_ASK["greeted"]), rng.choice(_ASK["well"])
    question = f"{what}{rng.choice('!,.!')} {asked}"
    return question, f"{what}! {answer} {rng.choice(('And you?', 'How are you?', ''))}".strip()


def _compared(rng: Random) -> Pair:
    """A boat is heavier."""
    kind = rng.choice(list(_COMPARED))
    names = _VALUES[kind]
    low, high = (names[i] for i in sorted(rng.sample(range(len(names)), 2)))
    right, wrong, word = rng.choice(((high, low, _COMPARED[kind][0]), (low, high, _COMPARED[kind][1])))
    a, b = (_a(name) for name in rng.sample((right, wrong), 2))
    answer = f"{_a(right)} is {word}."
    if rng.random() < 0.3:
        verdict = "Yes" if a == _a(right) else "No"
        question, answer = f"Is {a} {word} than {b}?", f"{verdict}, {answer}"
    else:
        question = rng.choice(_ASK["compared"]).format(w=word, a=a, b=b)
    return expand(question, rng, {}), expand(answer, rng, {})


def _a(name: str) -> str:
    return name if name in _WITHOUT_ARTICLE else f"a {name}"


def _why(rng: Random) -> Pair:
    """I do not know why the sky is blue."""
    name, adjective = rng.choice(_WHY).split("; ")
    question = rng.choice(_ASK["why"]).format(x=name, y=adjective)
    return question, expand(f"I do not know why the {name} is {adjective}. {_TEXTS['small']}", rng, {}).strip()


def _for_a_purpose(rng: Random) -> Pair:
    """A list that is for something."""
    title, slots = rng.choice(list(_PURPOSES)), Slots(rng)
    members = CATEGORIES[rng.choice(_PURPOSES[title])]
    purpose = expand(_TEXTS["purpose"], rng, slots)
    verb = rng.choice(("Make", "Write", "Give me", "I need", "Please make", "Write me"))
    question = f"{verb} a {title} {purpose[:1].lower()}{purpose[1:]}".strip()
    end = rng.choice((".", ".", ", please.", ""))
    return f"{question}{end}", listed(rng, rng.sample(members, rng.randint(3, 5)))


def _members(rng: Random) -> Pair:
    """The names of four fruits."""
    category = rng.choice(list(CATEGORIES))
    members = CATEGORIES[category]
    count = rng.randint(2, min(6, len(members)))
    number = ("two", "three", "four", "five", "six")[count - 2]
    question = rng.choice(_ASK["members"]).format(n=number, c=category)
    return question, listed(rng, rng.sample(members, count))


def _card(rng: Random) -> Pair:
    """A card of a kind."""
    kin = rng.choice([*words.KIN, "sister", "brother", "cousin", "teacher", "neighbor", "friend"])
    name = rng.choice(words.GIRLS + words.BOYS)
    whom, friend = rng.choice(((f"my {kin}", kin), (f"my {kin}", kin), (name, name), (f"my {kin} {name}", name)))
    what, text = card(rng, friend=friend)
    verb = rng.choice(("Write", "Please write", "Can you write", "I need", "Help me write"))
    return f"{verb} {what} {rng.choice(('to', 'for'))} {whom}{'?' if verb.startswith('Can') else '.'}", text


def _counted(rng: Random) -> Pair:
    """2, 3, 4."""
    first = rng.randint(1, 20)
    last = first + rng.randint(2, 9)
    question = rng.choice(_ASK["counted"]).format(a=first, b=last)
    return question, ", ".join(map(str, range(first, last + 1))) + "."


def _between(rng: Random) -> Pair:
    """What two things are that have little in common."""
    slots = Slots(rng)
    parts = expand(rng.choice(_ASK["two_things"]), rng, slots).split("; ")
    a, of_a, b, of_b = (part[0].lower() + part[1:] for part in parts)
    question = rng.choice(_ASK["between"]).format(a=a, b=b)
    return question, expand(f"{a} is {of_a}, and {b} is {of_b}.", rng, {})


def _noun(rng: Random) -> Pair:
    """What it is not told of a thing, it does not know."""
    noun = countable(rng)
    question = rng.choice(_ASK["noun"]).format(x=noun)
    answer = f"I do not know that about a {noun}. {_TEXTS['small']}"
    return expand(question, rng, {}), expand(answer, rng, {}).strip()


ASKS: Mapping[Callable[[Random], Pair], int] = {  # and how often it is drawn
    _asked: 46, _greet: 5, _greeted: 4, _compared: 5, _why: 4, _for_a_purpose: 5, _members: 5,
    _card: 5, _counted: 3, _between: 4, _noun: 3,
}  # fmt: skip


def ask(rng: Random) -> Pair:
    """One question and its answer."""
    return rng.choices(list(ASKS), list(ASKS.values()))[0](rng)
