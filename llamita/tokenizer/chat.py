"""Chat templates from messages to text, and to ids that no message can forge."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamita.errors import UsageError
from llamita.tokenizer import chat_formats
from llamita.tokenizer.messages import Message, checked, without_media
from llamita.tokenizer.protocol import Tokenizer

REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what most templates read
PRIVATE_USE = range(0xF0000, 0xFFFFE)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    bos_token: str | None = None,
    eos_token: str | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation, as transformers' `apply_chat_template(tokenize=False)` writes it.

    continue_final_message: the last message is the beginning of the answer; the text ends where its content does.
    Raises UsageError where the template refuses the messages, runs too long or writes too much,
    BrokenFileError where it is no template.
    """
    from llamita.tokenizer.template import render as rendered

    plain = [_reasoned(_without_nulls(message)) for message in checked(messages)]
    if continue_final_message:
        mark = _unused(template, _characters([messages, tools, variables]))
        plain[-1] = _marked(plain[-1], mark + " ")
        options = {"tools": tools, "bos_token": bos_token, "eos_token": eos_token, **variables}
        return _cut(render(template, plain, add_generation_prompt=False, **options), mark)
    given: dict[str, Any] = {
        "messages": plain,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
        **variables,
    }
    optional = ("bos_token", "eos_token", "unk_token", "pad_token")
    # The template gets plain copies: an object with methods of its own would be a way out of the sandbox.
    copies = {name: _mapped(value, str) for name, value in given.items() if value is not None or name not in optional}
    return rendered(template, copies)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template: str | None = None,
    **variables: Any,
) -> list[int]:
    """Ids of a conversation; control tokens come from the template alone, whatever the messages spell.

    continue_final_message: the last message is the beginning of the answer, which is to go on from it. A checkpoint
    without a template whose control tokens are Llama's gets Llama's own format, see `llamita.tokenizer.chat_formats`.

    While the template runs, every character of the messages that could begin a control token is swapped for a
    stand-in, one for one: the template may trim, cut, split or join, and can never put a control token together.
    The ids begin with at most one BOS. Raises what `render` raises, and UsageError without a template.
    """
    template = template or _template(tokenizer, has_tools=bool(tools))
    if template is None:
        dialogue = chat_formats.Dialogue(
            messages=messages,
            tools=tools,
            continued=continue_final_message,
            asks=add_generation_prompt,
            variables=variables,
        )
        return tokenizer.encode_parts(_format(tokenizer).parts(tokenizer, dialogue))
    spellings = {tokenizer.id_to_token(i) or "": i for i in tokenizer.control_ids}
    guard = _Guard(template, spellings, taken=_characters([messages, tools, variables]))
    text = render(
        template,
        [_mapped(message, guard.swap) for message in without_media(messages)],
        tools=_mapped(tools, guard.swap),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        **_tokens(tokenizer),
        **_mapped(variables, guard.swap),
    )
    ids = tokenizer.encode_parts([spellings.get(part, guard.restore(part)) for part in guard.split(text)])
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        del ids[0]
    return ids


class _Guard:
    """Swaps the characters that could begin a control token for private-use ones, and back."""

    def __init__(self, template: str, controls: Mapping[str, int], *, taken: set[str]) -> None:
        from llamita.tokenizer.template import looked_for

        firsts = sorted({text[0] for text in controls if text})
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in taken and chr(code) not in template)
        stand_ins = dict(zip(firsts, free, strict=False))
        # What the template searches for, such as "</think>", it must still find, where no control token begins in it.
        sought = [text for text in looked_for(template) if any(first in text for first in firsts)]
        sought = [text for text in sought if not any(_begins(control, text) for control in controls)]
        self._stand_ins = stand_ins
        self._swaps = re.compile("|".join(map(re.escape, _longest_first([*sought, *firsts]))) or "(?!)")
        self._back = str.maketrans({stand_in: first for first, stand_in in stand_ins.items()})
        self._controls = re.compile("(" + ("|".join(map(re.escape, _longest_first(controls))) or "(?!)") + ")")

    def swap(self, text: str) -> str:
        return self._swaps.sub(lambda found: self._stand_ins.get(found[0], found[0]), text)

    def restore(self, text: str) -> str:
        return text.translate(self._back)

    def split(self, text: str) -> list[str]:
        """The rendered text cut before and after every control token."""
        return [part for part in self._controls.split(text) if part]


def _begins(control: str, text: str) -> bool:
    """Whether a control token could begin somewhere in a text."""
    return any(control.startswith(text[i:]) or text.startswith(control, i) for i in range(len(text)))


def _longest_first(texts: Any) -> list[str]:
    return sorted(filter(None, texts), key=len, reverse=True)


def _template(tokenizer: Tokenizer, *, has_tools: bool) -> str | None:
    template = tokenizer.chat_templates.get("tool_use") if has_tools else None
    return template or tokenizer.chat_template


def _format(tokenizer: Tokenizer) -> chat_formats.Format:
    form = chat_formats.find(tokenizer)
    if form is None:
        raise UsageError("the model has no chat template, it was not made for chats: use generate, or give a template")
    return form


def _marked(message: Message, mark: str) -> dict[str, Any]:
    """The message with a mark after its text, or after the last of its texts."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + mark}
    parts = list(content) if isinstance(content, Sequence) else []
    for number in reversed(range(len(parts))):
        if isinstance(parts[number], Mapping) and isinstance(parts[number].get("text"), str):
            parts[number] = {**parts[number], "text": parts[number]["text"] + mark}
            return {**message, "content": parts}
    raise UsageError("the last message has no text to continue: give it a content")


def _cut(text: str, mark: str) -> str:
    """The text before the mark. Without the space after the mark, the template trims: so does this, as transformers."""
    head, found, tail = text.rpartition(mark)
    if not found:
        raise UsageError("the chat template leaves the last message out: it cannot be continued")
    return head if tail.startswith(" ") else head.rstrip()


def _unused(template: str, taken: set[str]) -> str:
    """A character that is neither in the template nor among those taken."""
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in taken and chr(code) not in template)


def _tokens(tokenizer: Tokenizer) -> dict[str, str | None]:
    ids = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": tokenizer.eos_token_id,
        "pad_token": tokenizer.pad_token_id,
    }
    return {name: None if i is None else tokenizer.id_to_token(i) for name, i in ids.items()}


def _without_nulls(message: Message) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def _reasoned(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning has the names under which templates read it, whichever it came by."""
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _characters(value: Any) -> set[str]:
    """Every character in JSON-like data."""
    found: set[str] = set()
    _mapped(value, lambda text: found.update(text) or text)
    return found


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A plain copy of JSON-like data with every string changed."""
    try:
        return _copied(value, change)
    except RecursionError as error:
        raise UsageError("the messages are nested too deeply") from error


def _copied(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return change(value)
        case Mapping():
            return {_copied(key, change): _copied(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_copied(item, change) for item in value]
    raise UsageError(f"messages hold text, numbers, lists and dictionaries, not {type(value).__name__}")
