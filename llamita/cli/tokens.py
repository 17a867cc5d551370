"""The tokens of a text, for people: piece by piece, with their ids, in the colour of their probability."""

import math
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TextIO

from llamita.cli import terminal

if TYPE_CHECKING:
    from torch import Tensor

    from llamita.generation.outputs import Logprobs
    from llamita.llm import LLM
    from llamita.tokenizer.protocol import Tokenizer

SCALE = {"sure": 0.9, "likely": 0.6, "open": 0.3, "unlikely": 0.1, "surprising": 0.0}  # style -> from which probability
WIDEST = 20  # characters of a token in a table


class Likely(NamedTuple):
    """A token, its log probability among all, and the likeliest in its place with theirs."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]

    @property
    def probability(self) -> float:
        """From 0 to 1."""
        return math.exp(self.logprob)


class Spelling:
    """How the tokens of a vocabulary are written."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _pieces(self) -> list[bytes | None]:
        from llamita.tokenizer.pieces import token_bytes

        return token_bytes(self._tokenizer)

    def of(self, token_id: int) -> str:
        """A token's own text; bytes that are no character by themselves become U+FFFD."""
        piece = self._pieces[token_id] if token_id < len(self._pieces) else None
        return (self._tokenizer.id_to_token(token_id) or "") if piece is None else piece.decode(errors="replace")

    def quoted(self, token_id: int) -> str:
        """A token for a table: in quotes, line ends and the like spelled out, cut where it is too long."""
        text = self.of(token_id)
        return repr(text if len(text) <= WIDEST else text[: WIDEST - 1] + "…")

    def data(self, likely: Likely) -> dict[str, object]:
        """A token with its log probability, and the likeliest ones in its place, as JSON has them."""
        top = [{"token": self.of(i), "logprob": logprob} for i, logprob in likely.top]
        return {"token": self.of(likely.token_id), "logprob": likely.logprob, "top": top}


class Probabilities:
    """Watches a stream: how likely each token was by the model's own logits, before temperature and filters.

    top: how many of the likeliest to note beside each.
    """

    def __init__(self, top: int = 0) -> None:
        self.tokens: list[Likely] = []
        self._top = top

    def __call__(self, logits: "Tensor", chosen: "Tensor") -> None:
        from llamita.generation.outputs import logprobs_of

        self.tokens += _listed(chosen, logprobs_of(logits, chosen, top=self._top))


def reread(llm: "LLM", prompt: Sequence[int], written: Sequence[int], *, top: int = 0) -> list[Likely]:
    """How likely the written tokens were behind a prompt, in one pass over both."""
    import torch

    from llamita.generation.outputs import logprobs_through

    with torch.no_grad():
        ids = torch.tensor([[*prompt, *written]], device=llm.model.device)
        states = llm.model.model(ids[:, :-1], use_cache=False).last_hidden_state[:, len(prompt) - 1 :]
        chosen = ids[:, len(prompt) :]
        logprobs = logprobs_through(states, llm.model.lm_head, chosen, top=top)
    return _listed(chosen[0], type(logprobs)(*(column[0] for column in logprobs)))


def _listed(tokens: "Tensor", logprobs: "Logprobs") -> list[Likely]:
    """Tokens (T,) and their log probabilities (T,), (T, n) as a list."""
    tops = zip(logprobs.top.tolist(), logprobs.top_logprobs.tolist(), strict=True)
    pairs = (list(zip(ids, values, strict=True)) for ids, values in tops)
    return [Likely(*entry) for entry in zip(tokens.tolist(), logprobs.chosen.tolist(), pairs, strict=True)]


class Trail:
    """Finds the tokens that a shown text came from, though characters may wait for their last byte, or to be shown.

    after: the ids before the text, as `stop.Row` has them.
    """

    def __init__(self, tokenizer: "Tokenizer", after: Sequence[int] = ()) -> None:
        from llamita.tokenizer.stream import CONTEXT, StreamDecoder

        self._decoder = StreamDecoder(tokenizer)
        for token_id in after[-CONTEXT:]:
            self._decoder.push(token_id)
        self._waiting: deque[tuple[str, float]] = deque()  # text and probability, not yet shown
        self._seen = 0

    def runs(self, text: str, tokens: Sequence[Likely]) -> Iterator[tuple[str, float]]:
        """The shown text, cut into what one token gave, each with its probability. tokens: all there are so far."""
        for likely in tokens[self._seen :]:
            self._waiting.append((self._decoder.push(likely.token_id), likely.probability))
        self._seen = len(tokens)
        probability = 1.0
        while text and self._waiting:
            piece, probability = self._waiting.popleft()
            if len(piece) > len(text):
                self._waiting.appendleft((piece[len(text) :], probability))
            yield text[: len(piece)], probability
            text = text[len(piece) :]
        if text:  # a character whose last bytes never came
            yield text, probability


def style_of(probability: float) -> str:
    """The style of a probability's class."""
    return next(style for style, least in SCALE.items() if probability >= least)


def paint(text: str, probability: float, stream: TextIO) -> str:
    """A piece of text in the colour of its probability; no character of it steers the terminal."""
    return terminal.paint(text.translate(terminal.CONTROLS), style_of(probability), stream)


def legend() -> str:
    """What the colours mean, in their colours on stderr."""
    names = (f"{style} ≥ {least:.0%}" if least else style for style, least in SCALE.items())
    return "  ".join(terminal.paint(name, style, sys.stderr) for name, style in zip(names, SCALE, strict=True))


def table(cells: Sequence[str]) -> list[str]:
    """The cells in as many columns as the terminal has room for, a line each."""
    width = max(map(len, cells), default=0) + 2
    columns = max(1, (shutil.get_terminal_size().columns - 2) // width)
    rows = (cells[start : start + columns] for start in range(0, len(cells), columns))
    return ["".join(cell.ljust(width) for cell in row).rstrip() for row in rows]
