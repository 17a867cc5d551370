"""`model.generate` holds its texts to a form, and finishes words that prompts break off in, whatever the strategy."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.loader import load
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.per_row import EachRow
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from tests.small import BEGIN, END, PAD

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 3},
    "drawn beams": {"num_beams": 3, "do_sample": True, "seed": 3},
    "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "early exit": {"assistant_early_exit": 2, "do_sample": True, "seed": 3},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PROMPTS = torch.tensor([[BEGIN, 64, 65, 66, 64], [PAD, BEGIN, 64, 65, 64]])


@pytest.fixture(scope="module")
def model(small_path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(small_path)


@pytest.fixture(scope="module")
def tokenizer(small_path: Path) -> Tokenizer:
    return load_tokenizer(small_path)


def texts(model: LlamaForCausalLM, tokenizer: Tokenizer, ids: Tensor = PROMPTS, **flags: Any) -> list[str]:
    out = model.generate(ids, tokenizer=tokenizer, max_new_tokens=110, **flags)
    return [tokenizer.decode(row) for row in out[:, ids.shape[1] :].tolist()]


@pytest.mark.parametrize("way", WAYS)
def test_forms(model: LlamaForCausalLM, tokenizer: Tokenizer, way: str) -> None:
    for text in texts(model, tokenizer, json_schema=PERSON, **WAYS[way]):
        assert {type(value) for value in json.loads(text).values()} == {str, int}, text
    for text in texts(model, tokenizer, regex="[ab]{3}-[0-9]{2}", repetition_penalty=1.2, **WAYS[way]):
        assert re.fullmatch("[ab]{3}-[0-9]{2}", text), text
    assert texts(model, tokenizer, grammar='start: "x" ("," "y")~2', **WAYS[way]) == ["x,y,y"] * 2
    assert {*texts(model, tokenizer, choice=["Yes", "No"], **WAYS[way])} <= {"Yes", "No"}


def test_a_form_is_the_llms(small_path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    llm = load(small_path)
    for options in ({}, {"temperature": 0.8, "seed": 5}):
        expected = llm.generate(PROMPTS[0].tolist(), json_schema=PERSON, **options).text
        flags = {"do_sample": True, "top_k": 0, **options} if options else {}
        assert texts(model, tokenizer, PROMPTS[:1], json_schema=PERSON, **flags) == [expected]


@pytest.mark.parametrize("way", ["greedy", "beams", "lookup"])
def test_a_form_a_row(model: LlamaForCausalLM, tokenizer: Tokenizer, way: str) -> None:
    flags = {"eos_token_id": END, "repetition_penalty": 1.2, **WAYS[way]}
    forms = EachRow(("[ab]{3}-[0-9]{2}", None))
    together = texts(model, tokenizer, regex=forms, **flags)
    alone = [texts(model, tokenizer, PROMPTS[i : i + 1], regex=forms[i], **flags)[0] for i in range(2)]
    assert together == alone
    assert re.fullmatch(forms[0], together[0])
    assert not re.fullmatch(forms[0], together[1])
    assert len(texts(model, tokenizer, choice=EachRow((["a"], ["b"])), do_sample=True, num_return_sequences=3)) == 6


def test_guesses_change_no_greedy_form(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    plain = texts(model, tokenizer, json_schema=PERSON)
    guesses: list[dict[str, Any]] = [
        {"prompt_lookup_num_tokens": 4},
        {"assistant_model": model},
        {"assistant_early_exit": 1},
    ]
    for flags in guesses:
        assert texts(model, tokenizer, json_schema=PERSON, **flags) == plain


def test_what_is_wrong_is_said(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"regex": "a", "tokenizer": None}, "regex is about text: pass tokenizer="),
        ({"token_healing": True, "tokenizer": None}, "token_healing is about text"),
        ({"regex": "a", "tokenizer": object()}, "cannot read a object"),
        ({"regex": "a", "choice": ["a"]}, "two forms"),
        ({"regex": "a", "token_healing": True}, "give one of them"),
        ({"regex": "("}, "refused|cannot"),
        ({"choice": "Yes"}, "list of texts"),
        ({"regex": "a", "eos_token_id": []}, "a token to end with"),
        ({"regex": EachRow(("a",))}, "regex lists 1 numbers for 2 rows"),
        ({"inputs_embeds": torch.zeros(2, 5, 64), "token_healing": True}, "takes tokens off the prompts"),
    ]
    for flags, message in wrong:
        with pytest.raises(UsageError, match=message):
            model.generate(PROMPTS, **{"tokenizer": tokenizer, "max_new_tokens": 3, **flags})


@pytest.fixture(scope="module")
def cria(cria_path: Path) -> LLM:
    """The embedded model, whose tokens are more than bytes."""
    return load(cria_path, dtype="float32")


BROKEN_OFF = ["Once upon a ti", "The little girl went to the pa", 'He said: "Hel', "Yes. "]


def padded(llm: LLM) -> Iterator[Tensor]:
    """Ids and mask of the prompts."""
    rows = [llm.tokenizer.encode(text) for text in BROKEN_OFF]
    longest = max(map(len, rows))
    yield torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    yield torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("way", [*WAYS, "assistant"])
def test_healing(cria: LLM, way: str) -> None:
    ids, mask = padded(cria)
    flags = {"assistant_model": cria.model, "num_assistant_tokens": 3} if way == "assistant" else WAYS[way]
    flags = {"attention_mask": mask, "tokenizer": cria.tokenizer, "max_new_tokens": 8, "do_sample": False, **flags}
    healed = cria.model.generate(ids, token_healing=True, **flags)
    assert healed.shape[1] < ids.shape[1] + 8
    for prompt, row in zip(BROKEN_OFF, healed.tolist(), strict=True):
        assert cria.tokenizer.decode(row).startswith(prompt)
    if not flags.get("do_sample") and way != "beams":
        expected = cria.generate(BROKEN_OFF, max_tokens=8, temperature=0.0, heal=True)
        for answer, row in zip(expected, healed.tolist(), strict=True):
            whole = [*answer.prompt_token_ids, *answer.token_ids]
            start = len(row) - 8 - len(answer.prompt_token_ids)
            assert row[start:][: len(whole)] == whole


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_the_prompts_own_text_is_no_stop_text(cria: LLM, way: dict[str, Any]) -> None:
    ids = torch.tensor([cria.tokenizer.encode("Once upon a ti")])
    flags = {"tokenizer": cria.tokenizer, "token_healing": True, "max_new_tokens": 6, "do_sample": False, **way}
    assert cria.model.generate(ids, stop_strings="ti", **flags).tolist() == cria.model.generate(ids, **flags).tolist()
    stopped = cria.model.generate(ids, stop_strings="me", **flags)
    assert cria.tokenizer.decode(stopped[0].tolist()).endswith("time")


def test_nothing_to_heal_changes_nothing(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    flags: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": 5}
    plain = model.generate(PROMPTS, **flags)
    assert model.generate(PROMPTS, token_healing=True, **flags).tolist() == plain.tolist()
