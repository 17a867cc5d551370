"""The plain texts and the everyday talk of cria's corpus."""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from recipes.cria import asks, chats, objects, openings, plain, requests, talk
from recipes.cria.corpus import Corpus
from recipes.cria.grammar import expand, read_templates
from recipes.cria.prompts import holds_prompt, read_prompts
from recipes.cria.slots import CATEGORIES, Slots

SEEDS = range(200)
Pair = tuple[str, str]


def templates(value: Any) -> list[str]:
    """All texts of a file of templates."""
    if isinstance(value, str):
        return [value]
    return [text for part in (value.values() if isinstance(value, dict) else value) for text in templates(part)]


def drawn(generator: Callable[[Random], Pair]) -> list[Pair]:
    return [generator(Random(seed)) for seed in SEEDS]


def asked(*names: str) -> list[Callable[[Random], Pair]]:
    return [generator for generator in talk.TALK if generator.__name__ in names]


@pytest.mark.parametrize("name", ["plain.toml", "talk.toml", "openings.toml", "requests.toml", "things.toml"])
def test_every_template_can_be_written_out(name: str) -> None:
    given = {"bye": "b", "news": "n", "news2": "m", "visit": "v", "x": "x", "w": "w", "a": "a", "b": "b"} | {
        "y": "y",
        "to": "t",
        "who": "you",
        "where": "at home",
    }
    for text in templates(read_templates(name)):
        for seed in range(4):
            slots = Slots(Random(seed))
            slots.update(given)
            assert not set("[]|@{}") & set(expand(text, Random(seed), slots)), text


def test_texts_are_whole_and_the_same_for_a_seed() -> None:
    makers = (plain.passage, plain.how_to, plain.letter, plain.rhyme, plain.plain_list, openings.opening)
    for generator in makers:
        for seed in SEEDS:
            text = generator(Random(seed))
            assert text == generator(Random(seed)) and not set("[]|@{}") & set(text)
            assert text[0].upper() == text[0] and "  " not in text and " ," not in text, text


def test_answers_belong_to_questions() -> None:
    for generator in talk.TALK:
        for question, answer in drawn(generator):
            assert question.strip() == question and answer.strip() and "|" not in question + answer
    for question, answer in drawn(asked("_repeat")[0]):
        assert answer in question
    for question, answer in drawn(asked("_finish")[0]):
        assert answer.split()[0] in question or len(answer.split()) == 1
    for question, answer in drawn(asked("_sentence")[0]):
        assert any(word.strip('.,"') in answer for word in question.split()[2:])


def test_requests_are_answered_by_what_they_ask() -> None:
    for generator in (*requests.REQUESTS, *asks.ASKS):
        for question, answer in drawn(generator):
            assert question.strip() == question and answer.strip() == answer and not set("[]|@{}") & set(answer)
            assert "  " not in question + answer, (question, answer)
    for seed in SEEDS:
        question, answer = requests.request(Random(seed))
        if answer.startswith(("Yes, ", "No, ")) and question.endswith("right?"):
            assert answer.split(", ")[1].split(" is ")[0].lower() in question.lower()
        if answer.startswith("I do not know much about "):
            assert answer.split(". ")[0].removesuffix(".").split()[-1] in question


def test_what_is_to_do_is_listed_once() -> None:
    for seed in SEEDS:
        items = re.split(r"\n|, | and ", openings.chores(Random(seed)).rstrip("."))
        names = [re.sub(r"^(\d+\.|-) ", "", item).lower() for item in items]
        assert len(names) == len(set(names))


def test_lists_have_as_many_items_as_are_asked_for() -> None:
    numbers = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
    for question, answer in drawn(asked("_list")[0]):
        count = next(numbers.get(word) or int(word) for word in question.split() if word in numbers or word.isdigit())
        items = re.split(r"\n|, | and ", answer)
        assert len(items) == count == len(set(items))
    category, _, members = plain.drawn_list(Random(1), category="fruits")
    assert set(members) <= set(CATEGORIES[category])


def test_objects_are_json_with_the_fields_that_are_asked_for() -> None:
    for seed in SEEDS:
        text = objects.labelled_object(Random(seed))
        assert json.loads(text[text.index("{") :])
        question, answer = objects.asked_object(Random(seed))
        assert all(name in question for name in json.loads(answer))


def test_a_poem_is_about_its_topic_and_has_pairs_of_lines() -> None:
    for seed in SEEDS:
        lines = plain.rhyme(Random(seed), topic="the old owl").split("\n")
        assert len(lines) in (2, 4) and "the old owl" in lines[0] and lines[-1].endswith(".")
    question, answer = asked("_poem")[0](Random(2))
    assert question.split(" about ")[-1].rstrip(".?").removesuffix(", please") in answer


def test_two_slots_of_a_table_differ_and_a_slot_stays() -> None:
    for seed in SEEDS:
        slots = Slots(Random(seed))
        assert slots["city"] == slots["city"] != slots["city2"]
        assert format(slots["animal"]) == slots["animal"].name  # type: ignore[union-attr]


def test_the_corpus_holds_none_of_the_prompts() -> None:
    prompts = read_prompts()
    assert len(set(prompts["text"] + prompts["chat"])) == 60
    assert all(holds_prompt(f"Then: {prompt.upper()} yes") for prompt in [*prompts["text"], *prompts["chat"]])
    assert not holds_prompt("My name is Ben. I love apples. Is a tomato redder?")
    assert not any(holds_prompt(prompt) for prompt in [*prompts["known_text"], *prompts["known_chat"]])


def test_a_document_that_holds_a_prompt_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["If I had a boat, I would sail.", "The soup was good."])
    monkeypatch.setattr("recipes.cria.corpus.plain", lambda rng: next(texts))
    (segment,) = Corpus({"plain": 1.0}, seed=1).document("plain", Random(0))
    assert "The soup was good." in segment.text


def test_conversations_begin_with_the_user_and_may_have_a_system_message() -> None:
    for seed in SEEDS:
        roles = [role for role, _ in chats.everyday(Random(seed))]
        assert roles[-2:] == ["user", "assistant"] and roles.count("user") == roles.count("assistant")
