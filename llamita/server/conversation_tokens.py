"""The ids of a conversation as clients send it, for every chat template, with those that take one call a message."""

from collections.abc import Mapping, Sequence
from typing import Any

from llamita.errors import UsageError
from llamita.tokenizer.chat import encode_chat
from llamita.tokenizer.protocol import Tokenizer

Message = Mapping[str, Any]


def conversation_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, continues: bool = False
) -> list[int]:
    """The ids of a conversation. Raises UsageError where the template does not take it.

    A message with several calls is given to the template as it is. Llama 3's own refuses that: then each call becomes
    a message, with its result after it. continues: the last message is the beginning of the answer.
    """
    try:
        return encode_chat(tokenizer, messages, tools=tools or None, continue_final_message=continues)
    except UsageError:
        if not any(len(message.get("tool_calls") or ()) > 1 for message in messages):
            raise
        apart = one_call_each(messages)
        return encode_chat(tokenizer, apart, tools=tools or None, continue_final_message=continues)


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with at most one call in a message, and the result of each after it."""
    found: list[Message] = []
    left = list(messages)
    while left:
        message = left.pop(0)
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            found.append(message)
            continue
        results: list[Message] = []
        while left and left[0].get("role") == "tool":
            results.append(left.pop(0))
        for number, call in enumerate(calls):
            content = message.get("content", "") if number == 0 else ""
            found.append({**message, "content": content, "tool_calls": [call]})
            own = next((one for one in results if one.get("tool_call_id") == call.get("id")), None)
            if own is not None:
                results.remove(own)
                found.append(own)
        found += results
    return found
