"""llama.cpp's grammars (GBNF, `root ::= "a"+`) in llguidance's dialect of Lark."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from llamita.errors import UsageError

ROOT = re.compile(r"^[ \t]*root[ \t]*::=", re.MULTILINE)
# Which of these comes next; what belongs to none is no GBNF. A rule ends where the next one is defined.
TOKEN = re.compile(
    r"""
    (?P<nothing>\s+|\#[^\n]*) | (?P<rule>[A-Za-z0-9_-]+)\s*::= | (?P<name>[A-Za-z0-9_-]+)
    | "(?P<text>(?:[^"\\]|\\.)*)" | \[(?P<characters>(?:[^\]\\]|\\.)*)\] | (?P<any>\.) | (?P<mark>[()|])
    | (?P<times>[*+?]) | \{\s*(?P<least>\d+)\s*(?P<most>,\s*\d*)?\s*\}
    """,
    re.VERBOSE,
)
ONE = r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\]"
CHARACTER, RANGE = re.compile(ONE), re.compile(f"({ONE})(?:-({ONE}))?")
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}


def is_gbnf(grammar: str) -> bool:
    """Whether a grammar defines a root as GBNF does, and not a start as Lark."""
    return ROOT.search(grammar) is not None


def lark_of(grammar: str) -> str:
    """The same grammar in Lark. Raises UsageError for what cannot be read, and for a rule that is nowhere defined."""
    tokens = list(_tokens(grammar))
    names = _names(tokens)
    pieces, is_empty = list[str](), False
    for token in tokens:
        if is_empty and (token["rule"] or token["mark"] in ("|", ")")):
            pieces.append('""')
        if token["times"] or token["least"]:
            pieces.append(f"{pieces.pop() if pieces else ''}{_times(token)}")
        else:
            pieces.append(_piece(token, names))
        is_empty = token["rule"] is not None or token["mark"] in ("|", "(")
    return " ".join([*pieces, '""'] if is_empty else pieces)


def _tokens(grammar: str) -> Iterator[re.Match[str]]:
    place = 0
    while place < len(grammar):
        if (token := TOKEN.match(grammar, place)) is None:
            raise UsageError(f"the grammar has a root, as GBNF, and cannot be read at {grammar[place : place + 20]!r}")
        place = token.end()
        if token["nothing"] is None:
            yield token


def _names(tokens: Iterable[re.Match[str]]) -> dict[str, str]:
    """The rules by their names in Lark, where those are terminals, one regular expression each, that can be.

    That is a rule without rules that are none: it meets no cycle.
    """
    uses: dict[str, set[str]] = {}
    for token in tokens:
        if token["rule"]:
            uses.setdefault(token["rule"], set())
        elif token["name"] and uses:
            uses[next(reversed(uses))].add(token["name"])
    if unknown := {name for names in uses.values() for name in names} - uses.keys():
        raise UsageError(f"the grammar names {min(unknown)!r} and does not define it")
    terminal = _acyclic(uses)
    numbered = {name: f"{'RULE' if name in terminal else 'rule'}_{number}" for number, name in enumerate(uses)}
    return numbered | {"root": "start"}


def _acyclic(uses: Mapping[str, set[str]]) -> set[str]:
    """The rules from which no cycle of rules is reached, nor the root."""
    users: dict[str, list[str]] = {name: [] for name in uses}
    for name, used in uses.items():
        for one in used:
            users[one].append(name)
    left = {name: len(used) for name, used in uses.items()}
    ready, found = [name for name, count in left.items() if not count and name != "root"], set[str]()
    while ready:
        found.add(name := ready.pop())
        for user in users[name]:
            left[user] -= 1
            if not left[user] and user != "root":
                ready.append(user)
    return found


def _piece(token: re.Match[str], names: Mapping[str, str]) -> str:
    """What stands for a token in Lark."""
    match token.lastgroup:
        case "rule":
            return f"\n{names[token['rule']]}:"
        case "name":
            return names[token["name"]]
        case "text":
            text = "".join(_character(found[0]) for found in CHARACTER.finditer(token["text"]))
            return json.dumps(text, ensure_ascii=False)
        case "characters":
            return f"/{_class(token['characters'])}/"
        case "any":
            return r"/[\x{0}-\x{10FFFF}]/"
    return token["mark"]


def _times(token: re.Match[str]) -> str:
    """How often what comes before a token stands: Lark has GBNF's signs, and wants both bounds."""
    most = token["least"] if token["most"] is None else token["most"].lstrip(", \t\r\n")
    return token["times"] or f"{{{token['least']},{most}}}"


def _class(inside: str) -> str:
    """A class of characters as a regular expression, in which each is its number, as none has a meaning then."""
    negated = inside.startswith("^")
    ranges = [[_number(one) for one in found.groups() if one] for found in RANGE.finditer(inside[negated:])]
    return f"[{'^' if negated else ''}{''.join('-'.join(one) for one in ranges)}]"


def _number(spelled: str) -> str:
    return f"\\x{{{ord(_character(spelled)):X}}}"


def _character(spelled: str) -> str:
    """The character that GBNF spells so. Raises UsageError for an escape that is none."""
    if not spelled.startswith("\\"):
        return spelled
    code = int(spelled[2:], 16) if len(spelled) > 2 else ord(ESCAPED.get(spelled[1:], "\ud800"))
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise UsageError(f"the grammar has {spelled!r}, which is no escape of a character in GBNF")
    return chr(code)
