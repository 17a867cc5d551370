"""JSON as it is written, piece by piece, in the form in which `sse.dumped` writes the whole of it."""

import json
from json.encoder import encode_basestring_ascii

BLANK = " \t\r\n"
MARKS = '{}[],:"'


class CompactJson:
    """Turns the text of an object, as it comes, into compact ASCII; `is_over` once the object is closed.

    It checks nothing: damaged JSON stays damaged. A key that comes twice does so here too.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._is_string = False
        self._escape = ""  # the beginning of one, backslash included
        self._word = ""  # the beginning of a number or a constant

    def push(self, text: str) -> tuple[str, str]:
        """What this piece adds, and what comes after the object."""
        out: list[str] = []
        for number, letter in enumerate(text):
            out.append(self._in_string(letter) if self._is_string else self._outside(letter))
            if self.is_over:
                return "".join(out), text[number + 1 :]
        return "".join(out), ""

    def _in_string(self, letter: str) -> str:
        if self._escape or letter == "\\":
            self._escape += letter
            return self._unescaped() if len(self._escape) == (6 if self._escape[1:2] == "u" else 2) else ""
        self._is_string = letter != '"'
        return _encoded(letter) if self._is_string else letter

    def _unescaped(self) -> str:
        escape, self._escape = self._escape, ""
        try:
            return _encoded(json.loads(f'"{escape}"'))
        except ValueError:
            return escape

    def _outside(self, letter: str) -> str:
        if letter not in MARKS and letter not in BLANK:
            self._word += letter
            return ""
        word, self._word = self._word, ""
        if letter in BLANK:
            return _normal(word)
        self._is_string = letter == '"'
        self._depth += (letter in "{[") - (letter in "}]")
        self.is_over = self._depth == 0
        return _normal(word) + letter


def _encoded(letters: str) -> str:
    return encode_basestring_ascii(letters)[1:-1]


def _normal(word: str) -> str:
    """A number or a constant as Python writes it: 1e2 is 100.0."""
    try:
        return json.dumps(json.loads(word)) if word else ""
    except ValueError:
        return word
