"""Prompts that begin alike go to one replica, unless that has much more to do than another."""

import json
from collections import Counter
from typing import Any

import pytest

from llamita.server.replicas.prefix import CHARACTERS, prefix_of, ranked

NAMES = ["a", "b", "c", "d"]
SYSTEM = {"role": "system", "content": "x" * CHARACTERS}


def of(**fields: Any) -> str:
    return prefix_of(json.dumps({"model": "m", **fields}).encode())


def test_a_prefix_is_what_prompts_begin_with() -> None:
    first = of(messages=[SYSTEM, {"role": "user", "content": "one"}], seed=1)
    assert first == of(seed=2, temperature=1, messages=[SYSTEM, {"role": "user", "content": "two"}])
    assert first != of(messages=[{**SYSTEM, "content": "y" + SYSTEM["content"]}])
    assert first != prefix_of(json.dumps({"model": "other", "messages": [SYSTEM]}).encode())
    assert len(first) == CHARACTERS
    assert of(prompt="a") != of(prompt="b")
    assert of(prompt=[1, 2]) != of(prompt=[1, 3])
    assert of(system="s", messages=[]) != of(messages=[])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"7"])
def test_a_body_without_a_prompt_has_none(body: bytes) -> None:
    assert prefix_of(body) == ""


def test_the_order_is_that_of_the_prefix() -> None:
    chosen = {prefix: ranked(prefix, NAMES, {}, 1) for prefix in map(str, range(400))}
    assert all(sorted(order) == NAMES for order in chosen.values())
    assert chosen == {prefix: ranked(prefix, NAMES[::-1], dict.fromkeys(NAMES, 7), 1) for prefix in chosen}
    counts = Counter(order[0] for order in chosen.values())
    assert min(counts.values()) > 50
    fewer = {prefix: ranked(prefix, NAMES[:3], {}, 1) for prefix in chosen}
    assert all(fewer[prefix][0] == order[0] for prefix, order in chosen.items() if order[0] != "d")


def test_a_busy_replica_is_left_to_its_own() -> None:
    first, *others = ranked("p", NAMES, {}, 2)
    assert ranked("p", NAMES, {first: 2}, 2)[0] == first
    assert ranked("p", NAMES, {**dict.fromkeys(NAMES, 5), first: 7}, 2)[0] == first
    busy = {first: 3, others[0]: 1}
    assert ranked("p", NAMES, busy, 2) == [others[1], others[2], others[0], first]


def test_without_a_prefix_the_least_busy_comes_first() -> None:
    assert ranked("", NAMES, {"a": 3, "b": 1, "c": 2, "d": 4}, 9) == ["b", "c", "a", "d"]
    assert ranked("p", [], {}, 1) == []
