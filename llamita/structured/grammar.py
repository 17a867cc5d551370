"""Structured output: text that matches a JSON schema, a regular expression, a Lark grammar, or one of some choices."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from llamita import checks
from llamita.errors import UsageError
from llamita.structured.exact import LARGEST as LARGEST_EXACT
from llamita.structured.exact import inexact
from llamita.structured.gbnf import is_gbnf, lark_of
from llamita.structured.guard import validate
from llamita.tokenizer.protocol import Tokenizer

if TYPE_CHECKING:
    import llguidance

LARGEST = 100_000  # characters of a grammar
IMPOSSIBLE = "no text can have this form"
# Whitespace between the parts of JSON is at most this; otherwise a model may write blanks without end.
BLANK = r"(\x20|\n\x20{0,16})?"
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')  # of Lark


@dataclass(frozen=True)
class Grammar:
    """A grammar in llguidance's format. The functions below make it, and compile it once to check it."""

    source: str


def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
    """A grammar of the JSON texts that match a schema, which is a dictionary or its JSON text.

    Raises UsageError for a schema that cannot be read or kept to.
    """
    from llguidance import LLMatcher

    text = schema_text(schema)
    try:
        source = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": BLANK})
    except ValueError as error:  # its JSON reader allows less nesting than Python's
        raise UsageError(f"the JSON schema cannot be read: {_sentence(str(error))}") from error
    return Grammar(validate(source))


def regex(pattern: str) -> Grammar:
    """A grammar of the texts that a regular expression fully matches.

    pattern: in Rust's syntax, which has no look-around and no backreferences. Raises UsageError for another.
    """
    from llguidance import LLMatcher

    return Grammar(validate(LLMatcher.grammar_from_regex(_bounded("regex", pattern))))


def lark(grammar: str) -> Grammar:
    """A context-free grammar in llguidance's dialect of Lark, whose first rule is `start`, or in llama.cpp's GBNF.

    Raises UsageError for a grammar that cannot be read.
    """
    from llguidance import LLMatcher

    text = _bounded("grammar", grammar)
    return Grammar(validate(LLMatcher.grammar_from_lark(lark_of(text) if is_gbnf(text) else text)))


def choice(texts: Sequence[str]) -> Grammar:
    """A grammar of exactly these texts.

    Raises UsageError for no texts, and for an empty one.
    """
    is_listed = isinstance(texts, Iterable) and not isinstance(texts, str)
    if not is_listed or not texts or not all(isinstance(text, str) and text for text in texts):
        raise UsageError("a choice is a list of texts: give at least one, and none that is empty")
    return lark("start: CHOICE\nCHOICE: " + " | ".join(quoted(text) for text in texts))


def matches(grammar: Grammar, text: str) -> bool:
    """Whether a whole text has a grammar's form: JSON with its properties in the order of the schema."""
    from llguidance import LLMatcher, LLTokenizer

    matcher, data = LLMatcher(LLTokenizer("byte"), grammar.source, log_level=0), list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def quoted(text: str) -> str:
    """A text as a Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def schema_text(schema: Mapping[str, Any] | str) -> str:
    """A schema as JSON text; raises UsageError if it is not one."""
    try:
        parsed = json.loads(_bounded("JSON schema", schema)) if isinstance(schema, str) else schema
        if not isinstance(parsed, Mapping):
            raise TypeError(f"it is a {type(parsed).__name__}, not an object")
        if found := inexact(parsed):
            raise UsageError(
                f"the JSON schema has {found[0]} {str(found[1])[:60]}, which cannot be kept to exactly: "
                f"take numbers up to {LARGEST_EXACT}"
            )
        return _bounded("JSON schema", json.dumps(parsed))
    except UsageError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the JSON schema cannot be read: {_sentence(str(error))}") from error


class Vocabulary:
    """A tokenizer in llguidance's form. It takes up to a second for 128 k tokens: make it once for a model.

    eos_token_ids: tokens that may end a text; the tokenizer's own by default. Raises UsageError if there are none.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int] | None = None) -> None:
        self.size = tokenizer.vocab_size
        ends = tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
        self.eos_token_ids = [i for i in ends if 0 <= i < self.size]
        if not self.eos_token_ids:
            raise UsageError("a constrained text needs a token to end with, and there is none: name one, eos_token_id=")
        self._tokenizer = tokenizer
        # Sealed: of a text that stands fast, llguidance takes the tokens that the tokenizer makes of it.
        self.inner = self._read(tokenizer.to_sealed_json())

    def of(self, grammar: Grammar) -> "llguidance.LLTokenizer":
        """The form for a grammar; one in Lark may name control tokens, such as <|python_tag|>, outside of strings."""
        lark = "" if grammar.source.startswith("{") else _STRING.sub("", grammar.source)
        return self._unsealed if any(name in lark for name in self._control_names) else self.inner

    @cached_property
    def _unsealed(self) -> "llguidance.LLTokenizer":
        """The form whose control tokens have their own names."""
        return self._read(self._tokenizer.to_json())

    @cached_property
    def _control_names(self) -> list[str]:
        names = (self._tokenizer.id_to_token(token) for token in self._tokenizer.control_ids)
        return [name for name in names if name]

    def _read(self, text: str) -> "llguidance.LLTokenizer":
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(text, n_vocab=self.size, eos_token=self.eos_token_ids)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"llguidance cannot read this tokenizer: {_sentence(str(error))}") from error


class Rule(Protocol):
    """Which tokens one row may write next: by a grammar (`Constraint`), or by the text it begins with (`Healing`)."""

    def mask(self, size: int) -> Tensor | None:
        """Which of the first `size` ids may come next, bool (size,); None for all."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by one token."""
        ...

    def fork(self) -> Self:
        """An independent copy, for a beam or a draft."""
        ...


class Constraint:
    """The grammar state of one row: which tokens may come next, and whether the text is complete.

    Raises UsageError for a grammar that is wrong, too large or allows no text. For several rows of one grammar, `fork`
    the first. error: the reason why llguidance gave up, such as its limits; then only an end token is allowed.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher, LLParserLimits

        self.vocabulary = vocabulary
        self.error: str | None = None
        limits = LLParserLimits(verbose_errors=False, max_grammar_size=100_000)
        self._matcher: llguidance.LLMatcher = LLMatcher(
            vocabulary.of(grammar), grammar.source, log_level=0, limits=limits
        )
        self._is_ended = False
        self._look()
        self.allowed()
        if self.error is not None:
            raise UsageError(f"the grammar is refused: {self.error}")

    @property
    def is_complete(self) -> bool:
        """Whether the text matches the grammar, so that it may end here."""
        return self.error is None and self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether only an end token may follow."""
        return self._is_ended or self.error is not None or self._matcher.is_stopped()

    def allowed(self) -> bytes:
        """The ids that may come next, one bit each, the lowest id first; for a finished row the end tokens."""
        if not self.is_finished:
            bits = self._matcher.compute_bitmask()
            self._look()
            if not self.is_finished:
                return bits
        ends = sum(1 << i for i in self.vocabulary.eos_token_ids)
        return ends.to_bytes((self.vocabulary.size + 31) // 32 * 4, "little")

    def mask(self, size: int) -> Tensor:
        """The same as bool (size,); ids beyond the vocabulary are False."""
        return _unpacked(self.allowed(), size)

    def accept(self, token_id: int) -> None:
        """Advance by one token. Tokens after an end token are padding and ignored; one not allowed sets `error`."""
        if self._is_ended or self.error is not None:
            return
        if token_id in self.vocabulary.eos_token_ids and self._matcher.is_accepting():
            self._is_ended = True
        else:
            self._matcher.consume_token(token_id)
            self._look()

    def fits(self, token_ids: Sequence[int]) -> int:
        """How many of the first tokens of a draft are allowed, each after those before it. The state stays as it is."""
        return 0 if self.is_finished else self._matcher.validate_tokens(list(token_ids))

    def fork(self) -> "Constraint":
        """An independent copy, for a beam or a draft."""
        twin = object.__new__(Constraint)
        twin.__dict__.update(self.__dict__)
        twin._matcher = self._matcher.deep_copy()
        return twin

    def _look(self) -> None:
        if self._matcher.is_error():
            self.error = _sentence(self._matcher.get_error())
        elif self._matcher.is_stopped() and not self._matcher.is_accepting():
            self.error = IMPOSSIBLE


class Constraints:
    """The rules of a batch, None for a row without one; a `StatefulProcessor` of the sampler."""

    def __init__(self, rows: Sequence[Rule | None]) -> None:
        self.rows = list(rows)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (B, V) with minus infinity for ids that a row may not write."""
        masks = [None if rule is None else rule.mask(logits.shape[1]) for rule in self.rows]
        if all(mask is None for mask in masks):
            return logits
        free = torch.ones(logits.shape[1], dtype=torch.bool, device="cpu")
        allowed = torch.stack([free if mask is None else mask for mask in masks])
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def append(self, step: Tensor) -> None:
        """Advance every row by its token of a step (B,)."""
        for rule, token_id in zip(self.rows, step.tolist(), strict=True):
            if rule is not None:
                rule.accept(token_id)

    def select(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` was, as beam search asks."""
        self.rows = self.forked(rows.tolist()).rows

    def forked(self, rows: Sequence[int]) -> "Constraints":
        """Independent copies of the rules of these rows, repeats allowed."""
        chosen = [self.rows[row] for row in rows]
        return Constraints([None if one is None else one.fork() for one in chosen])


def _unpacked(bits: bytes, size: int) -> Tensor:
    """Bits, the lowest of each byte first, as bool (size,); ids after the last bit are False."""
    flags = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=size, bitorder="little")
    return torch.from_numpy(flags).bool()


def _bounded(what: str, text: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"the {what} is {checks.quoted(text)}: give its text")
    if len(text) > LARGEST:
        raise UsageError(f"the {what} has {len(text)} characters, at most {LARGEST} are read: make it smaller")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} is not UTF-8 text: it has half of a surrogate pair, leave that out") from None
    return text


def _sentence(error: str) -> str:
    """The line of llguidance's message that gives the reason, without the parser state."""
    if error.startswith("NoExtension"):  # its name for a dead end
        return IMPOSSIBLE
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    return (reason or (lines[0] if lines else "no reason given"))[:300]
