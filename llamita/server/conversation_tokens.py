"""The ids of a conversation as clients send it, also for templates of one call a message, or of strict turns."""

from collections.abc import Callable, Mapping, Sequence
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

    The template is given the messages as they are, and where it refuses them, what says the same: calls one after
    another, as Llama 3's own wants them, and strict turns, as those of Llama 2 and Mistral do.
    """
    refusal = None
    tried: list[Sequence[Message]] = []
    for rewrite in REWRITINGS:
        rewritten = rewrite(messages)
        if rewritten in tried:
            continue
        tried.append(rewritten)
        try:
            return rendering.ids(tokenizer, rewritten, tools)
        except UsageError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


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


def strict_turns(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with one message a turn: what one side says at once is joined, by an empty line.

    What the system says after the first turn is said by the user.
    """
    turns: list[list[Message]] = []
    has_begun = False
    for given in messages:
        is_system = given.get("role") == "system"
        message = {**given, "role": "user"} if is_system and has_begun else given
        has_begun = has_begun or not is_system
        if turns and _are_one(turns[-1][-1], message):
            turns[-1].append(message)
        else:
            turns.append([message])
    return [turn[0] if len(turn) == 1 else {**turn[-1], "content": _joined(turn)} for turn in turns]


def _joined(turn: Sequence[Message]) -> str:
    return "\n\n".join(text for message in turn if (text := message["content"]))


def _are_one(first: Message, second: Message) -> bool:
    """Whether a message goes on from another of the same side. A result answers its call, so it stands alone."""
    are_texts = all(isinstance(one.get("content"), str) for one in (first, second))
    return are_texts and first.get("role") == second.get("role") != "tool" and not first.get("tool_calls")


# What is tried, in this order; the first that a template takes counts.
REWRITINGS: tuple[Callable[[Sequence[Message]], Sequence[Message]], ...] = (
    list, one_call_each, strict_turns, lambda messages: one_call_each(strict_turns(messages)),
)  # fmt: skip
