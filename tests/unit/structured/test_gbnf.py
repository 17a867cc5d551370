"""GBNF is read as llama.cpp reads it: these texts match, those do not."""

import pytest
from llguidance import LLMatcher

from llamita.errors import UsageError
from llamita.structured.gbnf import is_gbnf, lark_of
from llamita.structured.grammar import lark, matches

JSON = r"""
# a comment
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('root ::= "a"{5,5}', ["aaaaa"], ["aaaa", "aaaaaa"]),
        ('root ::= "a"{2} "b"{1,} "c"{0,2}', ["aab", "aabbbcc"], ["ab", "aa", "aabccc"]),
        ('root ::= ("x" | [0-9]+) ws "!"\nws ::= " "?', ["x!", "17 !"], ["x  !", "!"]),
        ("root ::= [a-c-]+ [^a-c]", ["a-bc-d", "aé", "a\n"], ["ab", "ac-a"]),
        ('root ::= "\\u00e9\\x41\\U0001F600\\n\\"" [\\]\\[]', ['éA😀\n"]'], ['éA😀n"]']),
        ("root ::= .", ["\n", "é", "😀"], ["ab"]),
        ('root ::= e\ne ::= "(" e ")" | [/^$-]', ["((/))", "(^)", "-"], ["(/", "a"]),
        ('root ::= a-b | ("" | "x") "y"\na-b ::= "z" |', ["z", "", "y", "xy"], ["zy", "x"]),
        (JSON, ['{"a": [1, -2.5e3, "b\\u00e9\\n", null], "c":{}}'], ["[1]", '{"a": 01}', '{"a": tru}', "{a: 1}"]),
    ],
)
def test_texts_match(grammar: str, right: list[str], wrong: list[str]) -> None:
    assert is_gbnf(grammar)
    made = lark(grammar)
    assert [text for text in right if not matches(made, text)] == []
    assert [text for text in wrong if matches(made, text)] == []


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("root ::= nope", "names 'nope'"),
        ('root ::= "a', "cannot be read at '\"a'"),
        ('root ::= "\\q"', "which is no escape"),
        ('root ::= "\\ud800"', "which is no escape"),
        ("root ::= [", "cannot be read"),
        ("root ::= <[1000]>", "cannot be read at '<"),
        ("x\nroot ::= x", "names 'x'"),
    ],
)
def test_what_is_no_gbnf_is_refused(grammar: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        lark(grammar)


@pytest.mark.parametrize("grammar", ["root ::= (", "root ::= +", 'root ::= "a" )', "root ::= " + "(" * 3000])
def test_what_lark_refuses_is_left_to_it(grammar: str) -> None:
    assert LLMatcher.validate_grammar(lark(grammar).source)


def test_lark_is_left_alone() -> None:
    assert not is_gbnf('start: "root ::= a"')
    assert matches(lark('start: "root ::= a"'), "root ::= a")


def test_rules_that_meet_no_cycle_are_terminals() -> None:
    chain = "".join(f"r{number} ::= r{number + 1}\n" for number in range(4000))
    made = lark_of(f'root ::= r0 | a | root "x"\na ::= "a" b?\nb ::= r0 a\n{chain}r4000 ::= [a]\n')
    assert made.startswith('\nstart: RULE_3 | rule_1 | start "x" \nrule_1: "a" rule_2? \nrule_2: RULE_3 rule_1')
    assert made.endswith("\nRULE_4003: /[\\x{61}]/")
