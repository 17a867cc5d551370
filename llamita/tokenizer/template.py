"""Chat templates: Jinja in a sandbox that bounds what a template may touch, make and spend.

Templates come with checkpoints, so from strangers. Jinja's own sandbox keeps them from Python's internals;
here their loops, calls and strings are also counted, and the methods and filters that make text out of numbers go.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llamita.errors import BrokenFileError, UsageError

MAX_TEXT = 10_000_000  # characters of any one string, and items of any one list
MAX_WORK = 1_000_000_000  # characters handled, with the weights below: seconds at most
MAX_GLUE = 1_000  # characters between joined texts
STEP = 2_000  # the weight of a call or a turn of a loop
ITEM = 200  # the weight of an item in a list or dictionary

# Filters by what they do with a list: hand its items on, or make text of all that is in them.
PASSING = "count d default first items last length list map reject rejectattr reverse select selectattr"
MAKING = """
    abs capitalize dictsort e escape float format groupby indent int join lower max min replace round safe sort string
    sum title trim truncate unique upper wordcount
"""
_STRETCHERS = ("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "encode", "format_map")
_WIDE = re.compile(r"\d{5,}|%[^%a-zA-Z]*\*|\{[^}]*\{")  # a width that is large, or given by an argument


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Render a template. Raises BrokenFileError where it is no Jinja, UsageError where it refuses the variables."""
    code = _compiled(template)
    try:
        sandbox = _Sandbox()
        pieces = Template.from_code(sandbox, code, sandbox.globals).generate(**variables)
        return "".join(sandbox.spending(pieces))
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"the chat template does not take these messages: {_sentence(error)}") from error
    except (RecursionError, MemoryError) as error:
        raise UsageError("the chat template does not end, or makes too much text: use another one") from error


@lru_cache(maxsize=16)
def looked_for(template: str) -> frozenset[str]:
    """The strings that a template searches or compares its input with. Raises BrokenFileError."""
    expressions = _parsed(_Sandbox(), template).find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test))
    found = (constant.value for expression in expressions for constant in expression.find_all(nodes.Const))
    return frozenset(value for value in found if isinstance(value, str))


@lru_cache(maxsize=16)
def _compiled(template: str) -> CodeType:
    sandbox = _Sandbox()
    tree = _parsed(sandbox, template)
    for loop in tree.find_all(nodes.For):
        loop.iter = _filtered(loop.iter, "counted")
    for concat in tree.find_all(nodes.Concat):
        concat.nodes = [_filtered(part, "weighed") for part in concat.nodes]
    try:
        code = sandbox.compile(tree)
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise BrokenFileError(f"the chat template is damaged: {_sentence(error)}") from error
    assert isinstance(code, CodeType)
    return code


def _parsed(sandbox: "_Sandbox", template: str) -> nodes.Template:
    try:
        tree = sandbox.parse(template)
    except (TemplateError, RecursionError) as error:
        raise BrokenFileError(f"the chat template is damaged: {_sentence(error)}") from error
    if any(loop.recursive for loop in tree.find_all(nodes.For)):
        raise BrokenFileError("the chat template has a recursive loop, which cannot be bounded: use another one")
    return tree


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


class _Generation(Extension):
    """`{% generation %}` marks the model's part of a dialogue for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace without underscore names: Python calls some of those by itself, outside the sandbox."""

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_if(str(name).startswith("_"), f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering, with its budget of work."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self) -> None:
        extensions = [LoopControlExtension, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._weighed)
        self._left = MAX_WORK
        passing = {name: self._metered(name, self.filters[name], self._held) for name in PASSING.split()}
        making = {name: self._metered(name, self.filters[name], self._weighed) for name in MAKING.split()}
        ours = {"tojson": self._metered("tojson", _tojson, self._weighed)}
        self.filters = passing | making | ours | {"counted": self._counted, "weighed": self._weighed}
        self.globals = {
            "range": self.globals["range"],
            "dict": lambda *pairs, **entries: dict(*pairs, **entries),
            "namespace": _namespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def spending(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of the output, as long as it stays in bounds."""
        total = 0
        for piece in pieces:
            total += len(piece)
            _refuse_if(total > MAX_TEXT, "it writes too much text")
            self._spend(len(piece))
            yield piece

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Leave out the methods that make large things of small numbers."""
        is_stretcher = isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in _STRETCHERS)
        return not is_stretcher and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Bound the widths in `"...".format(...)`."""
        method = super().wrap_str_format(value)
        _refuse_if(method is not None and bool(_WIDE.search(value.__self__)), "a format has too large a width")
        return method

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, function or method, counted."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            __self._check_growth(name, owner, args)
        __self._spend(STEP)
        return __self._weighed(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Bound what an operator makes before it makes it."""
        match operator, left, right:
            case "+", str() | list() | tuple(), str() | list() | tuple():
                self._afford(len(left) + len(right))
            case "*", str() | list() | tuple(), int():
                self._afford(len(left) * max(right, 0))
            case "*", int(), str() | list() | tuple():
                self._afford(len(right) * max(left, 0))
            case "*", int(), int():
                _refuse_if(left.bit_length() + right.bit_length() > 4096, "a number is too large")
            case "**", _, _:
                _refuse_if(abs(right) > 64 or abs(left) > 2**32, "a number is too large")
            case "%", str(), _:
                _refuse_if(bool(_WIDE.search(left)), "a format has too large a width")
                self._weighed(right)
        return super().call_binop(context, operator, left, right)

    def _metered(self, name: str, function: Callable[..., Any], account: Callable[[Any], Any]) -> Callable[..., Any]:
        @wraps(function)  # Also keeps the marks by which Jinja passes its context.
        def metered(*args: Any, **kwargs: Any) -> Any:
            values = [arg for arg in args if arg is not self and not isinstance(arg, Context | nodes.EvalContext)]
            self._spend(STEP)
            for value in (*values, *kwargs.values()):
                account(value)
            if values and isinstance(values[0], str):
                self._check_growth(name, values[0], values[1:])
            elif name == "join" and len(values) > 1:
                _refuse_if(len(str(values[1])) > MAX_GLUE, "it joins with too long a text")
            return account(function(*args, **kwargs))

        return metered

    def _check_growth(self, name: str, text: str, args: Iterable[Any]) -> None:
        """Bound what a string's method or filter makes."""
        match name, *args:
            case "replace", str(old), str(new), *_:
                self._afford(len(text) + text.count(old) * len(new))
            case "join", *_:
                _refuse_if(len(text) > MAX_GLUE, "it joins with too long a text")
                self._weighed(args)
            case "format", *_:
                _refuse_if(bool(_WIDE.search(text)), "a format has too large a width")
            case "indent", int() | str() as width, *_:
                _refuse_if((len(width) if isinstance(width, str) else width) > 64, "an indent is too wide")

    def _counted(self, value: Any) -> Any:
        """What a loop runs over, its turns paid for."""
        if hasattr(value, "__len__"):
            self._spend(STEP * len(value))
            return value
        return self._paid(value)

    def _paid(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(STEP)
            yield value

    def _weighed(self, value: Any) -> Any:
        """The value, once its size has been paid for: a small nest of lists can spell endless text."""
        if isinstance(value, str):
            self._afford(len(value))
        elif isinstance(self._held(value), list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                self._weighed(item)
        return value

    def _held(self, value: Any) -> Any:
        """The value, once its place in memory has been paid for, though not its items'."""
        if isinstance(value, list | tuple | dict):
            self._spend(ITEM * (1 + len(value)))
        return value

    def _afford(self, size: int) -> None:
        _refuse_if(size > MAX_TEXT, "it makes too long a text")
        self._spend(size)

    def _spend(self, work: int) -> None:
        self._left -= work
        _refuse_if(self._left < 0, "it takes too long")


def _refuse_if(condition: bool, why: str) -> None:
    if condition:
        raise SecurityError(why)


def _namespace(*pairs: Any, **entries: Any) -> _Namespace:
    space = _Namespace()
    for name, value in dict(*pairs, **entries).items():
        space[name] = value
    return space


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers' templates expect it: not escaped for HTML as Jinja's own."""
    _refuse_if(bool(indent) and (indent if isinstance(indent, int) else len(str(indent))) > 16, "an indent is too wide")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
