"""R12: log-probabilities are those of a distribution, finite, sorted, and their tokens spell the text."""

import json
import math
from typing import Any

import pytest

from tests.server.serving import Running, chat

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 1},
    {"temperature": 1, "seed": 2, "top_k": 3, "top_p": 0.5},
    {"temperature": 0, "choice": ["no"]},  # all other tokens are forbidden
    {"temperature": 0, "logit_bias": {str(number): -100 for number in range(1000)}},
    {"temperature": 0, "stop": ["e"]},
]


def check(entry: dict[str, Any], most: int) -> None:
    top = [one["logprob"] for one in entry["top_logprobs"]]
    assert len(top) == most
    assert top == sorted(top, reverse=True)
    assert all(math.isfinite(one) and one <= 0 for one in (*top, entry["logprob"]))
    assert sum(map(math.exp, top)) <= 1 + 1e-5
    same = [one["logprob"] for one in entry["top_logprobs"] if one["token"] == entry["token"]]
    assert same[:1] in ([], [entry["logprob"]])  # a drawn token may be none of the most probable
    assert same or entry["logprob"] <= top[-1]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_r12_chat_logprobs_are_a_distribution_s(server: Running, number: int) -> None:
    body = chat("Tell me a story.", max_tokens=12, logprobs=True, top_logprobs=20, **SETTINGS[number])
    answer = server.post("/v1/chat/completions", body)
    assert not {"NaN", "Infinity"} & set(answer.text.replace(",", " ").replace(":", " ").split())
    (choice,) = answer.json()["choices"]
    entries = choice["logprobs"]["content"]
    for entry in entries:
        check(entry, 20)
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert spelled.startswith(choice["message"]["content"].encode())
    lines = server.post("/v1/chat/completions", {**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    noted = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for one in noted if one for entry in one["content"]] == entries


def test_r12_an_echoed_prompt_has_its_logprobs_too(server: Running) -> None:
    body = {"model": "cria", "prompt": "Once upon a time", "max_tokens": 3, "temperature": 0, "logprobs": 5}
    (choice,) = server.post("/v1/completions", {**body, "echo": True}).json()["choices"]
    first, *rest = choice["logprobs"]["token_logprobs"]
    assert first is None
    assert all(math.isfinite(one) and one <= 0 for one in rest)
    for logprob, top in zip(rest, choice["logprobs"]["top_logprobs"][1:], strict=True):
        assert logprob <= max(top.values()) + 1e-6
        assert sum(map(math.exp, top.values())) <= 1 + 1e-5
