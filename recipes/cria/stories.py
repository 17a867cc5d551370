"""Short English stories: a cast and its things are drawn first, then one plot's beats are written out by the grammar.

Every proper name enters with an introduction ("a fox named Pip", "her friend Ben"), see `score.py` for the check.
"""

from random import Random

from recipes.cria import words
from recipes.cria.grammar import expand, read_templates

_TEXTS = read_templates("stories.toml")
_PLOTS = list(_TEXTS["plots"].values())
_PRONOUNS = {"he": ("he", "his", "him", "himself"), "she": ("she", "her", "her", "herself")}


def _person(prefix: str, name: str, kind: str, pronoun: str) -> dict[str, str]:
    """Slots of one character: {p}, {p_kind}, {p_he}, {p_his}, {p_him}, {p_self} and capitalised {p_He}, {p_His}."""
    he, his, him, himself = _PRONOUNS[pronoun]
    forms = {"": name, "_kind": kind, "_he": he, "_his": his, "_him": him, "_self": himself}
    forms |= {"_He": he.capitalize(), "_His": his.capitalize()}
    return {prefix + suffix: form for suffix, form in forms.items()}


def _draw_person(prefix: str, rng: Random, *, beast: bool, taken: str = "", kind: str = "") -> dict[str, str]:
    she = rng.random() < 0.5
    pool = words.PETS if beast and rng.random() < 0.6 else words.GIRLS if she else words.BOYS
    name = rng.choice([name for name in pool if name != taken and (not taken or name in words.FRIENDS)])
    kind = kind or (rng.choice(words.BEASTS) if beast else "girl" if she else "boy")
    return _person(prefix, name, kind, "she" if she else "he")


def cast(rng: Random, *, hero: str = "", name: str = "") -> dict[str, str]:
    """Draw everything a story speaks of: who, where, what; `hero` fixes the hero's kind ("fox", "girl", ...)."""
    beast = hero not in ("girl", "boy") if hero else rng.random() < 0.4
    slots = _draw_person("h", rng, beast=beast, kind=hero if beast else "")
    if hero in ("girl", "boy"):
        pool, pronoun = (words.GIRLS, "she") if hero == "girl" else (words.BOYS, "he")
        slots = _person("h", rng.choice(pool), hero, pronoun)
    slots["h"] = name or slots["h"]
    friend_beast = rng.random() < (0.85 if beast else 0.2)
    slots |= _draw_person("f", rng, beast=friend_beast, taken=slots["h"])
    elder = rng.choice(list(words.KIN))
    slots |= _person("e", f"{slots['h_his']} {elder}", elder, words.KIN[elder])
    at, to = rng.choice(words.PLACES).split("|")
    at2, to2 = rng.choice([place for place in words.PLACES if not place.startswith(at)]).split("|")
    spots = rng.sample(words.SPOTS, 3)
    color, color2 = rng.sample(words.COLORS, 2)
    draws = {
        "toy": words.TOYS, "food": words.FOODS, "craft": words.CRAFTS, "fear": words.FEARS, "good": words.GOODS,
        "bad": words.BADS, "trait": words.TRAITS, "trait2": words.TRAITS, "weather": words.WEATHERS,
        "time": words.TIMES, "stray": words.STRAYS, "treasure": words.TREASURES, "glad": words.GOODS,
    }  # fmt: skip
    slots |= {slot: rng.choice(pool) for slot, pool in draws.items()}
    slots |= {"at": at, "to": to, "at2": at2, "to2": to2, "color": color, "color2": color2}
    return slots | {f"spot{i + 1}": spot for i, spot in enumerate(spots)}


def story(rng: Random) -> str:
    """One story of about 100 to 200 words: an opening, the beats of one plot, an ending."""
    slots = cast(rng)
    beats = [rng.choice(_TEXTS["openings"]), *rng.choice(_PLOTS)]
    if rng.random() < 0.6:
        beats.append(rng.choice(_TEXTS["endings"]))
    if rng.random() < 0.05:
        beats[0] = rng.choice(_TEXTS["greetings"]) + " " + beats[0]
    for _ in range(rng.randint(0, 2)):
        beats.insert(rng.randint(2, len(beats) - 2), rng.choice(_TEXTS["asides"]))
    sentences = [expand(beat, rng, slots) for beat in beats]
    first = rng.randint(1, 2)  # a few stories keep to one paragraph, most have two or three
    breaks = {first, len(sentences) - rng.randint(1, 3)} if rng.random() < 0.8 else set()
    return "".join(("\n\n" if i in breaks else " " if i else "") + text for i, text in enumerate(sentences))


def short_story(rng: Random, *, hero: str = "", name: str = "", about: str = "") -> str:
    """One story of about 50 to 120 words, for a conversation; `about` is a thing that all of it is about."""
    slots = cast(rng, hero=hero, name=name) | ({"x": about} if about else {})
    opening = rng.choice(_TEXTS["about_openings" if about else "openings"])
    beats = [opening, *rng.choice(list(_TEXTS["about" if about else "short"].values()))]
    if rng.random() < 0.4:
        beats.append(rng.choice(_TEXTS["about_endings" if about else "endings"]))
    sentences = [expand(beat, rng, slots) for beat in beats]
    return " ".join(sentences[:-1]) + rng.choice((" ", "\n\n")) + sentences[-1]
