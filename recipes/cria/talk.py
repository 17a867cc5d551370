"""Questions of every day and their short answers, lists, poems, letters and JSON that a user asks for."""

from collections.abc import Callable, Mapping
from random import Random

from recipes.cria import words
from recipes.cria.grammar import expand, read_templates
from recipes.cria.objects import asked_object
from recipes.cria.plain import drawn_list, echo, letter, listed, passage, rhyme
from recipes.cria.slots import CATEGORIES, Row, Slots, any_noun, countable, odd_word

Pair = tuple[str, str]  # question, answer

_TEXTS = read_templates("talk.toml")
_ASK: Mapping[str, list[str]] = _TEXTS["wordings"]
_BY_SIZE = (
    "ant", "bee", "mouse", "frog", "hedgehog", "rabbit", "cat", "dog", "goat", "pig", "pony", "horse", "cow", "camel",
    "elephant", "whale",
)  # fmt: skip
_KINDS = ("fruits", "vegetables", "animals", "colors", "cities", "tools", "drinks", "flowers", "clothes", "sports")
_ONE = {"cities": "city", "clothes": "piece of clothing"}  # of a category; else it loses its s
_BARE = ("colors", "cities", "sports", "drinks")  # categories whose members have no article


def spoken(exchange: Mapping[str, str], rng: Random, slots: Slots) -> Pair:
    """A template's question and answer; a question may lack its capitals or its end, as visitors write."""
    question = expand(exchange["q"], rng, slots)
    if rng.random() < 0.15:
        question = question.rstrip(".!?").lower() if rng.random() < 0.5 else question.rstrip(".!")
    return question, expand(exchange["a"], rng, slots).strip()


def _spoken(group: str) -> Callable[[Random], Pair]:
    return lambda rng: spoken(rng.choice(_TEXTS[group]), rng, Slots(rng))


def _list(rng: Random) -> Pair:
    category, number, members = drawn_list(rng)
    verb = rng.choice(_ASK["list"])
    much = f"{number} {category}"
    what = rng.choice((much, much, f"{number} different {category}", f"a list of {much}"))
    end = "?" if verb.startswith(("Can", "Do")) else rng.choice((".", ", please.", "", "."))
    return f"{verb} {what}{end}", listed(rng, members)


def _some(rng: Random) -> Pair:
    category, _, members = drawn_list(rng)
    return rng.choice(_ASK["some"]).format(x=category), listed(rng, members[:5])


def _member(rng: Random) -> Pair:
    """Is a pear a fruit?"""
    own, other = rng.sample(_KINDS, 2)
    member = rng.choice(CATEGORIES[own])
    asked = rng.choice((own, other))
    article = "" if own in _BARE else "a "
    question = f"Is {article}{member} a {_ONE.get(asked, asked.removesuffix('s'))}?"
    answer = f"{'Yes' if asked == own else 'No'}, it is a {_ONE.get(own, own.removesuffix('s'))}."
    return expand(question, rng, {}), expand(answer, rng, {})


def _eats(rng: Random) -> Pair:
    slots = Slots(rng)
    food = "{animal.eats}" if rng.random() < 0.5 else "{animal2.eats}"
    question = expand(f"Does a {{animal}} eat {food}?", rng, slots)
    animal = slots["animal"]
    verdict = "Yes" if isinstance(animal, Row) and animal.eats in question else "No"
    return question, expand(f"{verdict}, a {{animal}} eats {{animal.eats}}.", rng, slots)


def _bigger(rng: Random) -> Pair:
    small, large = sorted(rng.sample(range(len(_BY_SIZE)), 2))
    pair = [_BY_SIZE[small], _BY_SIZE[large]]
    is_bigger = rng.random() < 0.6
    right, word = pair[is_bigger], "bigger" if is_bigger else "smaller"
    rng.shuffle(pair)
    question = expand(rng.choice(_ASK["bigger"]), rng, {"w": word, "a": pair[0], "b": pair[1]})
    return question, expand(f"A {right} is {word}.", rng, {})


def _next(rng: Random) -> Pair:
    names = rng.choice((CATEGORIES["days"], CATEGORIES["months"], [str(number) for number in range(1, 31)]))
    index = rng.randrange(len(names) - 1)
    one, other = names[index], names[index + 1]
    if rng.random() < 0.6:
        return rng.choice(_ASK["after"]).format(x=one), f"After {one} comes {other}."
    return f"What comes before {other}?", f"Before {other} comes {one}."


def _count(rng: Random) -> Pair:
    first, last = (1, rng.randint(3, 15)) if rng.random() < 0.6 else sorted(rng.sample(range(1, 25), 2))
    last = min(last, first + 14)
    question = rng.choice((f"Count from {first} to {last}.", f"Count from {first} to {last}, please."))
    if first == 1:
        question = rng.choice((question, *(ask.format(x=last) for ask in _ASK["count"])))
    return question, ", ".join(map(str, range(first, last + 1))) + "."


def _repeat(rng: Random) -> Pair:
    text = echo(rng)
    return rng.choice(_ASK["repeat"]).format(x=text), text


def _poem(rng: Random) -> Pair:
    drawn = expand("[[the|a|my] {topical}|[the|a|my] {beast}|{liked}]", rng, Slots(rng))
    known, two = drawn[0].lower() + drawn[1:], f"{any_noun(rng)} {any_noun(rng)}"
    topic = rng.choice((known, f"the {any_noun(rng)}", two, f"the {two}", rng.choice(words.CITIES), odd_word(rng)))
    verse = rng.choice(_ASK["verse"])
    question = rng.choice(_ASK["poem"]).format(w=verse, x=topic)
    if rng.random() < 0.2:
        return rng.choice(_ASK["any_poem"]), rhyme(rng)
    return question[0].upper() + question[1:], rhyme(rng, topic=topic)


def _letter(rng: Random) -> Pair:
    kin = rng.choice([*words.KIN, "sister", "brother", "cousin"])
    mine = (f"my {kin}", kin.capitalize())  # to whom, and how the letter calls them
    others = (("my friend {n}", "{n}"), ("{n}", "{n}"), ("my teacher", "teacher"), ("a friend", "friend"))
    to, friend = rng.choice((mine, mine, *others, ("my neighbor", "neighbor"), ("the doctor", "Doctor")))
    name = rng.choice(words.GIRLS + words.BOYS)
    mail = rng.choice(_ASK["mail"])
    question = rng.choice(_ASK["letter"]).format(w=mail, x=to.format(n=name))
    return question, letter(rng, friend=friend.format(n=name))


def _finish(rng: Random) -> Pair:
    """The beginning of a sentence, and all of it."""
    text = passage(rng).split(". ")[0].rstrip(".") + "."
    parts = text.split(" ")
    cut = rng.randint(min(2, len(parts) - 1), max(2, len(parts) // 2))
    return rng.choice(_ASK["finish"]).format(x=" ".join(parts[:cut])), text


def _sentence(rng: Random) -> Pair:
    """A sentence with a word in it."""
    slots, word = Slots(rng), countable(rng)
    question = rng.choice(_ASK["sentence"]).format(x=word)
    slots["x"] = word
    return question, expand(rng.choice(_ASK["sentences"]), rng, slots)


def _passage(rng: Random) -> Pair:
    return expand(rng.choice(_ASK["text"]), rng, {}), passage(rng)


TALK: Mapping[Callable[[Random], Pair], int] = {  # and how often it is drawn
    _spoken("facts"): 18, _spoken("opinions"): 11, _spoken("news"): 15, _spoken("advice"): 11, _spoken("unknown"): 8,
    _spoken("short"): 9, _list: 6, _some: 2, _member: 2, _eats: 2, _bigger: 2, _next: 2, _count: 2, _repeat: 12,
    _poem: 4, _letter: 3, asked_object: 9, _finish: 5, _sentence: 3, _passage: 1,
}  # fmt: skip


def exchange(rng: Random) -> Pair:
    """One question and its answer."""
    return rng.choices(list(TALK), list(TALK.values()))[0](rng)
