"""Tool calls: read them from a model's answer, and make a grammar that allows only valid ones."""

import ast
import json
import keyword
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamita.errors import UsageError
from llamita.structured.grammar import BLANK, Grammar, lark, quoted, schema_text

Tool = Mapping[str, Any]
LONGEST = 100_000  # characters of one text with calls
PYTHON_TAG = "<|python_tag|>"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TAGGED = re.compile(r"<function=([^>\s]{1,128})>")
_NAMES = {"true": True, "false": False, "null": None}  # models write JSON's constants in pythonic calls too


@dataclass(frozen=True)
class ToolCall:
    """The name of a function to call, and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse(text: str, names: Sequence[str] | None = None) -> list[ToolCall]:
    """The tool calls of an answer, in order; an empty list for plain text, a damaged call, or an unknown tool.

    The first character decides the format: `{` for Llama 3's `{"name": "f", "parameters": {...}}`, with `;` or a line
    break between several; `[` for pythonic `[f(a=1), g(b="x")]`; otherwise `<function=f>{...}</function>` anywhere in
    the text. names: the known tools; None allows any name.
    """
    text = text.strip().removeprefix(PYTHON_TAG).strip()
    if len(text) > LONGEST:
        return []
    read = next((read for first, read in READERS.items() if text.startswith(first)), _tagged)
    try:
        calls = list(read(text))
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError):
        return []
    return calls if all(names is None or call.name in names for call in calls) else []


def _json(text: str) -> Iterator[ToolCall]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        arguments = value["parameters"] if "parameters" in value else value["arguments"]
        yield _call(value["name"], json.loads(arguments) if isinstance(arguments, str) else arguments)
        rest = text[at:]
        at += len(rest) - len(rest.lstrip("; \n\t"))


def _tagged(text: str) -> Iterator[ToolCall]:
    at = 0
    while found := _TAGGED.search(text, at):
        start = found.end() + len(text[found.end() :]) - len(text[found.end() :].lstrip())
        arguments, at = json.JSONDecoder().raw_decode(text, start)
        yield _call(found[1], arguments)


def _pythonic(text: str) -> Iterator[ToolCall]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of invalid escapes, which are the model's, not the user's
        tree = ast.parse(text, mode="eval").body
    for call in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not a call with named arguments")
        names = [word.arg for word in call.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError("an argument has no name, or one that is taken")
        arguments = {str(word.arg): ast.literal_eval(_Literal().visit(word.value)) for word in call.keywords}
        name = ast.unparse(call.func)
        if not _is_python(name):
            raise ValueError("a call of what is no name")
        yield _call(name, arguments)


class _Literal(ast.NodeTransformer):
    """Replaces JSON's true, false and null by Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_NAMES[node.id])


def _call(name: Any, arguments: Any) -> ToolCall:
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call is a name and an object")
    check_arguments(arguments)
    return ToolCall(name, arguments)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise TypeError for values that JSON has not, ValueError for infinity, NaN, and letters that no file can have."""
    json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()


READERS: Mapping[str, Callable[[str], Iterator[ToolCall]]] = {"{": _json, "[": _pythonic}


# The grammars that force a call


def grammar(tools: Sequence[Tool], *, style: str = "json") -> Grammar:
    """A grammar that allows exactly the valid calls of these tools: `Constraint(grammar(tools), vocabulary)`.

    tools: as chat templates get them, {"type": "function", "function": {...}}, or the inner object alone, with name
    and parameters. style: "json" (Llama 3), "tag" (<function=f>) or "pythonic", which allows several calls at once.
    Raises UsageError for an unknown style, an empty list, or a tool without a proper name.
    """
    if style not in STYLES:
        raise UsageError(f"tool-call style {style!r} is unknown: use {', '.join(STYLES)}")
    if not tools:
        raise UsageError("there are no tools to call: give at least one")
    functions = [tool.get("function", tool) if isinstance(tool, Mapping) else {} for tool in tools]
    rules = [STYLES[style](f"call{i}", function) for i, function in enumerate(functions)]
    one = " | ".join(f"call{i}" for i in range(len(functions)))
    start = 'start: "[" call (", " call)* "]"' if style == "pythonic" else "start: call"
    return lark("\n".join([start, f"call: {one}", *rules]))


def call_or_json(tools: Sequence[Tool], schema: Mapping[str, Any]) -> Grammar:
    """A grammar of JSON that is a call of one of these tools, in Llama 3's style, or what a schema describes.

    Raises UsageError for a tool without a proper name, and for schemas that cannot be kept to.
    """
    # Calls are schemas too: the lexer does not go back from a literal '{"name": "f"' to the key of another object.
    schemas = [*(_call_schema(tool.get("function", tool)) for tool in tools), schema]
    rules = [f"form{i}: %json {_json_text(one)}" for i, one in enumerate(schemas)]
    return lark("\n".join([f"start: {' | '.join(f'form{i}' for i in range(len(schemas)))}", *rules]))


def _call_schema(function: Tool) -> dict[str, Any]:
    """The schema of a whole call; what the parameters refer to stands at its top."""
    parameters = json.loads(_parameters(function))
    definitions = {key: parameters.pop(key) for key in ("$defs", "definitions") if key in parameters}
    del parameters["x-guidance"]
    fields = {"name": {"const": _name(function)}, "parameters": parameters}
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False, **definitions}


def _json_rule(rule: str, function: Tool) -> str:
    head = f'{{"name": {json.dumps(_name(function))}, "parameters": '
    return f"{rule}: {quoted(head)} %json {_parameters(function)} {quoted('}')}"


def _tag_rule(rule: str, function: Tool) -> str:
    head, tail = f"<function={_name(function)}>", "</function>"
    return f"{rule}: {quoted(head)} %json {_parameters(function)} {quoted(tail)}"


def _pythonic_rule(rule: str, function: Tool) -> str:
    """A call with named arguments in the schema's order; optional ones may be left out.

    Two rules for each argument: `a` if no argument was written before it, `b` if one was, so that a comma comes first.
    """
    _check_python(_name(function))
    schema = json.loads(_parameters(function))
    arguments, required = list(schema.get("properties", {}).items()), schema.get("required", [])
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    lines = [f"{rule}: {quoted(_name(function) + '(')} {rule}_a0 {quoted(')')}"]
    for i, (name, value) in enumerate(arguments):
        _check_python(name)
        lines.append(f"{rule}_v{i}: {quoted(name + '=')} {_python_value(value, definitions)}")
        first, later = f"{rule}_v{i} {rule}_b{i + 1}", f'", " {rule}_v{i} {rule}_b{i + 1}'
        skip_a, skip_b = ("", "") if name in required else (f" | {rule}_a{i + 1}", f" | {rule}_b{i + 1}")
        lines += [f"{rule}_a{i}: {first}{skip_a}", f"{rule}_b{i}: {later}{skip_b}"]
    return "\n".join([*lines, f'{rule}_a{len(arguments)}: ""', f'{rule}_b{len(arguments)}: ""'])


def _is_python(name: str) -> bool:
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def _check_python(name: str) -> None:
    if not _is_python(name):
        raise UsageError(f"{name!r} is no name in Python: use another style than pythonic")


def _python_value(schema: Any, definitions: Mapping[str, Any]) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "boolean" and len(schema.keys() - {"description", "title", "default"}) == 1:
        return '("True" | "False")'
    return f"%json {_json_text({**schema, **definitions} if isinstance(schema, dict) else definitions)}"


def _name(function: Tool) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"a tool is named {name!r}: use letters, digits and _ . - (128 at most)")
    return name


def _parameters(function: Tool) -> str:
    """The schema of the arguments: it allows no others than those named, unless it says so itself."""
    schema = function.get("parameters") or {"properties": {}}
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties", {}), Mapping):
        raise UsageError(f"the parameters of tool {_name(function)!r} are no JSON schema of an object")
    closed = {"type": "object", "additionalProperties": False} if "properties" in schema else {}
    return _json_text({**closed, **schema})


def _json_text(schema: Mapping[str, Any]) -> str:
    return schema_text({**schema, "x-guidance": {"whitespace_pattern": BLANK}})


STYLES: Mapping[str, Callable[[str, Tool], str]] = {"json": _json_rule, "tag": _tag_rule, "pythonic": _pythonic_rule}
