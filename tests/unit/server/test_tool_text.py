"""Streams of answers that may be calls."""

import pytest

from llamita.server.tool_text import ToolText


def streamed(text: str, size: int) -> tuple[str, str]:
    """What is shown of a text on the way, and what is held back to its end."""
    tool_text = ToolText()
    shown = "".join(tool_text.push(text[i : i + size]) for i in range(0, len(text), size))
    return shown, tool_text.rest()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("Hello, world", ""),
        ('{"name": "f", "parameters": {}}', '{"name": "f", "parameters": {}}'),
        ('  \n{"name"', '  \n{"name"'),
        ("[f(a=1)]", "[f(a=1)]"),
        ("<|python_tag|>f()", "<|python_tag|>f()"),
        ("Well: <function=f>{}</function>", "<function=f>{}</function>"),
        ("a < b <func", "<func"),
        ("a <b> c", ""),
        ("see {a}", ""),
        ("", ""),
        ("  ", "  "),
    ],
)
def test_what_may_be_a_call_waits(text: str, held: str, size: int) -> None:
    shown, rest = streamed(text, size)
    assert (shown, rest) == (text.removesuffix(held) if held else text, held)
