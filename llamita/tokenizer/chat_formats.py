"""Llama's chat formats in plain Python, for checkpoints that know the control tokens and bring no chat template."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamita.checks import quoted
from llamita.errors import UsageError
from llamita.tokenizer.messages import Message, checked, text_of
from llamita.tokenizer.protocol import Tokenizer

Part = str | int  # text, whatever it looks like, or the id of a control token
TOOLS_HEADING = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
)
SYSTEM_TOOLS_HEADING = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
)
CALL_FORM = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
DATE = "26 Jul 2024"  # the one that Llama 3.1 was given where nobody said another


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What is to be written down.

    continued: the last message is the beginning of the answer. asks: the answer comes next. variables: date_string,
    builtin_tools (names), tools_in_user_message, as Llama 3.1's own template has them.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    continued: bool = False
    asks: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A way to write conversations, and the control tokens by which a tokenizer is known to speak it."""

    name: str
    needs: tuple[str, ...]
    roles: tuple[str, ...]
    write: Callable[[Dialogue, Mapping[str, int]], Iterator[Part]]

    def parts(self, tokenizer: Tokenizer, dialogue: Dialogue) -> list[Part]:
        """The conversation as text and control tokens, for `encode_parts`. Raises UsageError for wrong messages."""
        for message in checked(dialogue.messages):
            if message["role"] not in self.roles:
                known = ", ".join(self.roles)
                raise UsageError(
                    f"role {quoted(message['role'])} is not known to {self.name}'s chat format: use {known}"
                )
        if dialogue.continued and dialogue.messages[-1]["role"] != "assistant":
            raise UsageError("only an answer can be continued: end with a message of role assistant")
        controls = {text: i for text in self.needs if (i := tokenizer.token_to_id(text)) is not None}
        return list(self.write(dialogue, controls))


def find(tokenizer: Tokenizer) -> Format | None:
    """The newest format whose control tokens a tokenizer has; None where it has those of no format."""
    return next((form for form in FORMATS if _knows(tokenizer, form)), None)


def _knows(tokenizer: Tokenizer, form: Format) -> bool:
    controls = (tokenizer.token_to_id(text) for text in form.needs)
    return all(i is not None and i in tokenizer.control_ids for i in controls)


def _llama_3(dialogue: Dialogue, controls: Mapping[str, int]) -> Iterator[Part]:
    """Llama 3: every message under a header, ended by <|eot_id|>."""
    if dialogue.tools:
        raise UsageError("Llama 3's chat format has no tools, Llama 3.1's has: leave tools out")
    yield controls["<|begin_of_text|>"]
    yield from _turns(dialogue, dialogue.messages, controls)


def _llama_3_1(dialogue: Dialogue, controls: Mapping[str, int]) -> Iterator[Part]:
    """Llama 3.1 to 3.3: a system message with dates always, tools before the first question, answers of tools."""
    messages, tools, variables = list(dialogue.messages), dialogue.tools, dialogue.variables
    asked_in_user = bool(variables.get("tools_in_user_message", True))
    instructions = text_of(messages.pop(0)).strip() if messages[0]["role"] == "system" else ""
    listed = _listed(tools or ())
    yield controls["<|begin_of_text|>"]
    preamble = _preamble(dialogue) + (SYSTEM_TOOLS_HEADING + CALL_FORM + listed if tools and not asked_in_user else "")
    yield from _turn("system", preamble + instructions, controls)
    if tools and asked_in_user:
        if not messages or messages[0]["role"] != "user":
            raise UsageError("tools are listed in the first question: begin with a message of role user")
        yield from _turn("user", TOOLS_HEADING + CALL_FORM + listed + text_of(messages.pop(0)).strip(), controls)
    yield from _turns(dialogue, messages, controls)


def _preamble(dialogue: Dialogue) -> str:
    """The lines above the instructions: the built-in tools, and two dates."""
    builtin = dialogue.variables.get("builtin_tools")
    environment = "Environment: ipython\n" if dialogue.tools or builtin is not None else ""
    if builtin is not None:
        environment += "Tools: " + ", ".join(name for name in builtin if name != "code_interpreter") + "\n\n"
    today = dialogue.variables.get("date_string", DATE)
    return f"{environment}Cutting Knowledge Date: December 2023\nToday Date: {today}\n\n"


def _turns(dialogue: Dialogue, messages: Sequence[Message], controls: Mapping[str, int]) -> Iterator[Part]:
    builtin = dialogue.variables.get("builtin_tools")
    for number, message in enumerate(messages, 1):
        if dialogue.continued and number == len(messages):
            yield from _turn("assistant", text_of(message).strip(), controls, end=None)
        elif calls := message.get("tool_calls"):
            # A call of a tool in the ipython environment does not end the turn, it waits for the tool's message.
            end = "<|eot_id|>" if builtin is None else "<|eom_id|>"
            yield from _turn("assistant", "", controls, *_call(calls, builtin or (), controls), end=end)
        elif message["role"] in ("tool", "ipython"):
            content = message.get("content", "")
            text = _json(content) if isinstance(content, str | Mapping | Sequence) else str(content)
            yield from _turn("ipython", text, controls)
        else:
            yield from _turn(message["role"], text_of(message).strip(), controls)
    if dialogue.asks and not dialogue.continued:
        yield from _turn("assistant", "", controls, end=None)


def _turn(
    role: str, text: str, controls: Mapping[str, int], *more: Part, end: str | None = "<|eot_id|>"
) -> Iterator[Part]:
    yield from (controls["<|start_header_id|>"], role, controls["<|end_header_id|>"], "\n\n" + text, *more)
    if end is not None:
        yield controls[end]


def _call(calls: Any, builtin: Sequence[str], controls: Mapping[str, int]) -> Iterator[Part]:
    """A call as the model writes it: JSON; for a built-in tool a control token and Python."""
    try:
        (call,) = (entry["function"] for entry in calls)
        name, arguments = str(call["name"]), call.get("arguments", {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError("tool_calls holds one call: [{'function': {'name': ..., 'arguments': {...}}}]") from error
    if name in builtin and isinstance(arguments, Mapping):
        yield controls["<|python_tag|>"]
        yield f"{name}.call(" + ", ".join(f'{key}="{value}"' for key, value in arguments.items()) + ")"
        return
    written = arguments if isinstance(arguments, str) else _json(arguments)  # OpenAI's clients send them as text
    yield '{"name": "' + name + '", "parameters": ' + written + "}"


def _listed(tools: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_json(tool, indent=4) + "\n\n" for tool in tools)


def _json(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a tool or what it said is no JSON data: {error}") from error


def _llama_2(dialogue: Dialogue, controls: Mapping[str, int]) -> Iterator[Part]:
    """Llama 2: questions in [INST], which is text, each exchange between <s> and </s>."""
    if dialogue.tools:
        raise UsageError("Llama 2's chat format has no tools: leave them out")
    messages = list(dialogue.messages)
    instructions = ""
    if messages[0]["role"] == "system":
        instructions = f"<<SYS>>\n{text_of(messages.pop(0))}\n<</SYS>>\n\n"
    if [message["role"] for message in messages] != [("user", "assistant")[i % 2] for i in range(len(messages))]:
        raise UsageError("roles must alternate user, assistant, user, ...: Llama 2's chat format has no others")
    for number, message in enumerate(messages):
        text = text_of(message)
        if number % 2 == 0:
            yield controls["<s>"]
            yield f"[INST] {((instructions if number == 0 else '') + text).strip()} [/INST]"
        elif dialogue.continued and number == len(messages) - 1:
            yield f" {text.lstrip()}"  # its end as given: the space that follows an answer is not there yet
        else:
            yield f" {text.strip()} "
            yield controls["</s>"]


HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("system", "user", "assistant")
FORMATS = (
    Format("Llama 3.1", (*HEADERS, "<|eom_id|>", "<|python_tag|>"), (*ROLES, "tool", "ipython"), _llama_3_1),
    Format("Llama 3", HEADERS, ROLES, _llama_3),
    Format("Llama 2", ("<s>", "</s>"), ROLES, _llama_2),
)
