"""Messages with several calls, for templates that take them and for those that take one."""

from typing import Any

import pytest

import llamita
from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.server.conversation_tokens import conversation_tokens, one_call_each

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


def test_what_no_form_of_a_conversation_mends_is_refused(cria: LLM) -> None:
    for wrong in ([ASKED, {"role": "user", "content": 3}], [calling(1, 2), {"role": "user", "content": 3}]):
        with pytest.raises(UsageError, match="does not take these messages"):
            conversation_tokens(cria.tokenizer, wrong, [])
