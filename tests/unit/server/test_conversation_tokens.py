"""Conversations of agents, for templates that take them and for those that take one call a message, or strict turns."""

from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.server.conversation_tokens import conversation_tokens, one_call_each, strict_turns
from llamita.tokenizer.load import load_tokenizer
from tests.unit.tokenizer.tiny import LLAMA_2_TEMPLATE, llama_2_library, write

ASKED = {"role": "user", "content": "What is the weather?"}


def call(number: int) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": f"f{number}", "arguments": {"n": number}}}


def calling(*numbers: int, content: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [call(number) for number in numbers]}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "content": f"r{number}", "tool_call_id": f"c{number}"}


@pytest.fixture(scope="module")
def cria() -> LLM:
    return llamita.load(device="cpu")


def test_each_call_is_a_message_with_its_result_after_it() -> None:
    given = [ASKED, calling(1, 2, 3, content="So:"), result(3), result(1), result(9), ASKED, calling(4), result(4)]
    assert one_call_each(given) == [
        ASKED, calling(1, content="So:"), result(1), calling(2), calling(3), result(3), result(9),
        ASKED, calling(4), result(4),
    ]  # fmt: skip


def test_a_template_of_one_call_reads_several_one_after_another(cria: LLM) -> None:
    together = [ASKED, calling(1, 2), result(1), result(2)]
    apart = [ASKED, calling(1), result(1), calling(2), result(2)]
    ids = conversation_tokens(cria.tokenizer, together, [])
    assert ids == conversation_tokens(cria.tokenizer, apart, [])
    assert cria.tokenizer.decode(ids, skip_special_tokens=False).count('"name": "f') == 2


def said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


AGENTS = [  # Codex begins so; Claude Code has a message of the system after the first turn
    said("system", "s1"), said("system", "s2"), said("user", "u1"), said("user", "u2"), said("system", "s3"),
    said("assistant", "a1"), calling(1), result(1), said("user", "u3"),
]  # fmt: skip


def test_strict_turns_say_the_same() -> None:
    assert strict_turns(AGENTS) == [
        said("system", "s1\n\ns2"), said("user", "u1\n\nu2\n\ns3"), calling(1, content="a1"), result(1),
        said("user", "u3"),
    ]  # fmt: skip
    apart = [said("user", "u"), calling(1), calling(2), result(1), result(2)]
    assert strict_turns(apart) == apart  # each call stands alone


@pytest.mark.parametrize("settings", [{"chat_template": LLAMA_2_TEMPLATE}, {}])
def test_a_template_of_strict_turns_reads_what_agents_send(settings: dict[str, str], tmp_path: Path) -> None:
    llama_2_library().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings})
    tokenizer = load_tokenizer(tmp_path)
    ids = conversation_tokens(tokenizer, AGENTS[:5], [])
    assert ids == conversation_tokens(tokenizer, [said("system", "s1\n\ns2"), said("user", "u1\n\nu2\n\ns3")], [])
    with pytest.raises(UsageError, match="alternate"):
        conversation_tokens(tokenizer, [said("assistant", "a")], [])


def test_a_template_that_takes_all_reads_it_as_it_is(cria: LLM) -> None:
    text = cria.tokenizer.decode(conversation_tokens(cria.tokenizer, AGENTS, []), skip_special_tokens=False)
    assert text.count("<|start_header_id|>user") == 3


def test_what_no_form_of_a_conversation_mends_is_refused(cria: LLM) -> None:
    for wrong in ([ASKED, {"role": "user", "content": 3}], [calling(1, 2), {"role": "user", "content": 3}]):
        with pytest.raises(UsageError, match="does not take these messages"):
            conversation_tokens(cria.tokenizer, wrong, [])
