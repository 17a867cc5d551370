"""Conversations: greetings, questions about cria, small facts, stories on demand, and the tasks in turns."""

from random import Random

from recipes.cria import asks, requests, talk, tasks, words
from recipes.cria.grammar import expand, read_templates
from recipes.cria.slots import countable
from recipes.cria.stories import short_story

Message = tuple[str, str]  # (role, content)

_TEXTS = read_templates("chats.toml")
FACTS: dict[str, dict[str, str]] = _TEXTS["facts"]


def _fact(rng: Random) -> Message:
    kind = rng.choice(("capitals", "sounds", "opposites", "colors", "counts"))
    both_ways = [(b, a) for a, b in FACTS[kind].items()] if kind == "opposites" else []
    a, b = rng.choice([*FACTS[kind].items(), *both_ways])
    return {
        "capitals": (f"What is the capital of {a}?", f"The capital of {a} is {b}."),
        "sounds": (f"What sound does a {a} make?", f"A {a} {b}."),
        "opposites": (f"What is the opposite of {a}?", f"The opposite of {a} is {b}."),
        "colors": (f"What color is {a}?", f"{a[0].upper()}{a[1:]} is {b}."),
        "counts": (f"How many {a}?", f"{b.capitalize()}."),
    }[kind]


def _exchange(rng: Random) -> Message:
    """One question of small talk with its answer."""
    slots = {"name": rng.choice(words.NAMES), "color": rng.choice(words.COLORS), "beast": rng.choice(words.BEASTS),
             "thing": rng.choice(words.THINGS), "city": rng.choice(words.CITIES)}  # fmt: skip
    if (draw := rng.random()) < 0.2:
        return _fact(rng)
    if draw < 0.3:
        return expand(rng.choice(_TEXTS["unknown"]), rng, slots), expand(_TEXTS["do_not_know"], rng, slots)
    talk = rng.choice(_TEXTS["small_talk"])
    return expand(talk["question"], rng, slots), expand(talk["answer"], rng, slots)


def _story_exchange(rng: Random) -> Message:
    if rng.random() < 0.3:
        return expand(rng.choice(_TEXTS["ask_any_story"]), rng, {}), short_story(rng)
    if rng.random() < 0.5:
        thing = countable(rng)
        return expand(rng.choice(_TEXTS["ask_story"]), rng, {"kind": thing}), short_story(rng, about=thing)
    kind = rng.choice([*words.BEASTS, "girl", "boy", *words.HEROES])
    if rng.random() < 0.7:
        return expand(rng.choice(_TEXTS["ask_story"]), rng, {"kind": kind}), short_story(rng, hero=kind)
    name = rng.choice(words.GIRLS if kind == "girl" else words.BOYS if kind == "boy" else words.NAMES)
    named = f"{kind} [named|called] {name}"
    return expand(rng.choice(_TEXTS["ask_story"]), rng, {"kind": named}), short_story(rng, hero=kind, name=name)


def _turns(pairs: list[Message]) -> list[Message]:
    return [message for question, answer in pairs for message in (("user", question), ("assistant", answer))]


def a_system(rng: Random) -> list[Message]:
    """In three of ten conversations, a system message."""
    return [("system", expand(rng.choice(_TEXTS["systems"]), rng, {}))] if rng.random() < 0.3 else []


def small_talk(rng: Random) -> list[Message]:
    """One to four exchanges, now and then with a story or a task among them."""
    pairs = [_exchange(rng) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        case = tasks.draw(rng.choice(("add", "subtract", "copy", "sort numbers", "sort words", "compare")), rng)
        pairs.append((case.question, case.answer))
    if rng.random() < 0.25:
        pairs.append(_story_exchange(rng))
    return a_system(rng) + _turns(pairs)


def everyday(rng: Random) -> list[Message]:
    """One to three exchanges about anything, now and then after a greeting."""
    pairs = [_exchange(rng)] if rng.random() < 0.15 else []
    return a_system(rng) + _turns([*pairs, *(talk.exchange(rng) for _ in range(rng.choice((1, 1, 2, 3))))])


def asked(rng: Random) -> list[Message]:
    """One to three exchanges about what visitors ask, now and then with one of every day."""
    pairs = [asks.ask(rng) if rng.random() < 0.8 else talk.exchange(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return a_system(rng) + _turns(pairs)


def requested(rng: Random) -> list[Message]:
    """One to three exchanges about things, places, names and long words, now and then with one of every day."""
    pairs = [
        requests.request(rng) if rng.random() < 0.85 else talk.exchange(rng) for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    return a_system(rng) + _turns(pairs)


def told_story(rng: Random) -> list[Message]:
    """A story asked for, sometimes after a greeting."""
    pairs = [_exchange(rng)] if rng.random() < 0.2 else []
    return a_system(rng) + _turns([*pairs, _story_exchange(rng)])


def solved(cases: list[tasks.Case]) -> list[Message]:
    """Task cases as the turns of one conversation."""
    return _turns([pair for case in cases for pair in (*case.before, (case.question, case.answer))])


def called_tool(case: tasks.Case, rng: Random) -> list[Message]:
    """A tool call; half the time with the tool's result and an answer that uses it."""
    turns = [("user", case.question), ("assistant", case.answer)]
    if rng.random() < 0.5:
        result = rng.choice(
            ("sunny", "cloudy", "rainy", "done", "ready", "12", "20", "7", *words.COLORS, *words.THINGS)
        )
        turns += [("ipython", result), ("assistant", f"The answer is: {result}.")]
    return turns
