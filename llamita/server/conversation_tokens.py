"""The ids of a conversation as clients send it, for every chat template, with those that take one call a message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamita.errors import UsageError
from llamita.tokenizer.chat import encode_chat
from llamita.tokenizer.protocol import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Rendering:
    """How a template is to write a conversation.

    continues: the last message is the beginning of the answer. asks: the beginning of another message comes after it.
    variables: that the template reads besides.
    """

    continues: bool = False
    asks: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)

    def ids(self, tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation. Raises UsageError where the template does not take it."""
        return encode_chat(
            tokenizer,
            messages,
            tools=tools or None,
            add_generation_prompt=self.asks,
            continue_final_message=self.continues,
            **self.variables,
        )


PLAIN = Rendering()


def conversation_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], rendering: Rendering = PLAIN
) -> list[int]:
    """The ids of a conversation. Raises UsageError where the template does not take it.

    A message with several calls is given to the template as it is. Llama 3's own refuses that: then each call becomes
    a message, with its result after it.
    """
    try:
        return rendering.ids(tokenizer, messages, tools)
    except UsageError:
        if not any(len(message.get("tool_calls") or ()) > 1 for message in messages):
            raise
        return rendering.ids(tokenizer, one_call_each(messages), tools)


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
