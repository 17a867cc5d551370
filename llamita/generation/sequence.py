"""A sequence: the tokens and text of one row, why it ended, and all other state of the row."""

from collections import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.logprobs import TokenLogprob
from llamita.sampling.mirostat import SurpriseLimit
from llamita.structured.grammar import Rule as Constraint
from llamita.tokenizer.protocol import Tokenizer
from llamita.tokenizer.stream import CONTEXT, StreamDecoder


@dataclass(frozen=True)
class Finish:
    """Why a row ended: "stop", with the matching token id or string, or "length"."""

    reason: str
    matched: int | str | None = None


@dataclass(frozen=True)
class Ending:
    """Tokens that end a row besides the end tokens, and whether what ends it is part of its text, if it is text."""

    token_ids: tuple[int, ...] = ()
    is_shown: bool = False


NOTHING_ELSE = Ending()


class Sequence:
    """One row of a batch: its tokens, its text, why it ended, and the state its next token depends on.

    limit: the most tokens. eos_token_ids: ids that end it. strings: stop strings, which end the text, across token
    borders too. ending: what else ends it. tokenizer: needed for `strings`, and where text is wanted. after: the ids
    before the row, if its text continues theirs: a SentencePiece token keeps its leading space only after another one.
    again: ids of the prompt that are written a second time; their text is left out.
    prompt_token_ids: the prompt. generator: draws its tokens; None is torch's global one. constraint: which tokens it
    may have. surprise_limit: mirostat's state. logprobs, prompt_logprobs: of its tokens and its prompt's, if recorded.
    Raises UsageError for stop strings without a tokenizer.
    """

    def __init__(
        self,
        limit: int,
        *,
        eos_token_ids: abc.Collection[int] = (),
        strings: abc.Sequence[str] = (),
        ending: Ending = NOTHING_ELSE,
        tokenizer: Tokenizer | None = None,
        after: abc.Sequence[int] = (),
        again: abc.Sequence[int] = (),
        prompt_token_ids: abc.Sequence[int] = (),
        generator: torch.Generator | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        if strings and tokenizer is None:
            raise UsageError("stop_strings are found in text: pass tokenizer= as well")
        self.limit = limit
        self.ending_ids = frozenset((*eos_token_ids, *ending.token_ids))
        self.strings, self.ending = tuple(strings), ending
        self.token_ids: list[int] = []
        self.text = ""  # complete and safe to show; what may become a stop string waits
        self.finish = None if limit else Finish("length")
        self.prompt_token_ids = list(prompt_token_ids)
        self.generator, self.constraint = generator, constraint
        self.surprise_limit = SurpriseLimit()
        self.logprobs: abc.Sequence[TokenLogprob] | None = None
        self.prompt_logprobs: abc.Sequence[TokenLogprob] | None = None
        self._decoder = None if tokenizer is None else _decoder_after(tokenizer, after)
        self._again = 0  # characters still to leave out
        if tokenizer is not None and again:
            self._again = len("".join(map(_decoder_after(tokenizer, after).push, again)))
        self._held: list[tuple[str, bool]] = []  # characters, and whether they are shown
        self._names = tokenizer if strings else None  # where special tokens are spelled

    @property
    def needs_tokens(self) -> bool:
        """Whether the values of the tokens are read, not only their count."""
        return bool(self.ending_ids) or self._decoder is not None

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that became safe to show."""
        self.token_ids.append(token_id)
        shown, is_end = "", token_id in self.ending_ids
        if self._decoder is not None and (self.ending.is_shown or not is_end):
            shown = self._decoder.push(token_id)
            if self._again:
                shown = self._own(shown)
            if self.strings:
                shown = self._release(shown, self._name(token_id))
        if is_end and self.finish is None:
            self.finish = Finish("stop", token_id)
        if self.finish is None and len(self.token_ids) >= self.limit:
            self.finish = Finish("length")
        if self.finish is not None:
            shown += self._rest()
        self.text += shown
        return shown

    def end(self, finish: Finish) -> None:
        """End the row for this reason, unless it has ended, and release the held text."""
        if self.finish is None:
            self.finish = finish
            self.text += self._rest()

    def _own(self, piece: str) -> str:
        """The part of a new piece that does not repeat the prompt."""
        left, self._again = piece[self._again :], max(0, self._again - len(piece))
        return left

    def _name(self, token_id: int) -> str:
        """The name of a special token, if there are stop strings; else nothing."""
        if self._names is None or token_id not in self._names.special_ids:
            return ""
        return self._names.id_to_token(token_id) or ""

    def _release(self, piece: str, name: str = "") -> str:
        """Text that can be shown: the held text and a new piece, up to a stop string or the start of one."""
        if not self.strings:
            return piece
        held = [*self._held, *((one, True) for one in piece), *((one, False) for one in name)]
        text = "".join(one for one, _ in held)
        if (found := first_match(text, self.strings)) is not None:
            start, string = found
            self.finish, self._held = Finish("stop", string), []
            return _shown(held[: start + len(string) if self.ending.is_shown else start])
        start = len(text) - partial_match(text, self.strings)
        self._held = held[start:]
        return _shown(held[:start])

    def _rest(self) -> str:
        """The text still held when the row ended: the start of a stop string, and what the decoder has.

        Nothing is shown of a character that the limit cut: its tokens are not wrong, the next ones are missing.
        """
        assert self.finish is not None
        if self._decoder is None or isinstance(self.finish.matched, str):
            return ""
        rest = self._decoder.flush()
        rest = rest.rstrip("\ufffd") if self.finish.reason == "length" else rest
        text = self._release(self._own(rest)) + _shown(self._held)
        self._held = []
        return text


def _decoder_after(tokenizer: Tokenizer, before: abc.Sequence[int]) -> StreamDecoder:
    """A stream decoder that has read these ids."""
    decoder = StreamDecoder(tokenizer)
    for token_id in before[-CONTEXT:]:
        decoder.push(token_id)
    return decoder


def _shown(held: abc.Sequence[tuple[str, bool]]) -> str:
    return "".join(one for one, is_shown in held if is_shown)


def listed_stops(stop: str | abc.Sequence[str] | None) -> list[str]:
    """Stop strings as a list; raises UsageError for an empty one."""
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if not all(stops):
        raise UsageError("a stop string is empty: it would stop before the first token, leave it out")
    return stops


def first_match(text: str, strings: abc.Sequence[str]) -> tuple[int, str] | None:
    """The start and the text of the stop string that is complete first, reading character by character."""
    ends = [(text.find(string) + len(string), string) for string in strings if string in text]
    if not ends:
        return None
    end, string = min(ends, key=lambda found: (found[0], -len(found[1])))
    return end - len(string), string


def partial_match(text: str, strings: abc.Sequence[str]) -> int:
    """How many of the last characters may be the start of a stop string."""
    longest = min(max(map(len, strings), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in strings)), 0)


def generators_of(sequences: abc.Iterable[Sequence]) -> list[torch.Generator] | None:
    """The random generators of sequences; None if they draw from torch's global one."""
    return [one.generator for one in sequences if one.generator is not None] or None


class SequenceBatch:
    """The sequences of a batch, which take their tokens step by step."""

    def __init__(self, sequences: abc.Iterable[Sequence]) -> None:
        self.sequences = list(sequences)
        self._steps = 0
        self._needs_tokens = any(row.needs_tokens for row in self.sequences)

    @property
    def is_over(self) -> bool:
        """Whether every row has ended."""
        return all(row.finish is not None for row in self.sequences)

    def padded(self, step: Tensor, pad_token_id: int | None) -> Tensor:
        """The tokens (B,) of a step, with padding in the rows that have ended."""
        ended = [row.finish is not None for row in self.sequences]
        if pad_token_id is None or not any(ended):
            return step
        return step.masked_fill(torch.tensor(ended, device=step.device), pad_token_id)

    def accept(self, step: Tensor) -> None:
        """Append the tokens (B,) of a step; they leave the device only if a row reads their values."""
        self._steps += 1
        if self._needs_tokens:
            for row, token_id in zip(self.sequences, step.tolist(), strict=True):
                if row.finish is None:
                    row.push(token_id)
            return
        for row in self.sequences:
            if row.finish is None and self._steps >= row.limit:
                row.finish = Finish("length")
