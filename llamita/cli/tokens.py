"""The tokens of a text, for people: piece by piece, with their ids, in the colour of their probability."""

import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from llamita.cli.screen import Screen
from llamita.cli.terminal import columns, paint

if TYPE_CHECKING:
    from llamita.generation.logprobs import TokenLogprob
    from llamita.llm import LLM
    from llamita.tokenizer.protocol import Tokenizer

SCALE = {"sure": 0.9, "likely": 0.6, "open": 0.3, "unlikely": 0.1, "surprising": 0.0}  # style -> from which probability
WIDEST = 20  # characters of a token in a table


def quoted(text: str) -> str:
    """A token's text for a table: in quotes, line ends and the like spelled out, cut where it is too long."""
    return repr(text if len(text) <= WIDEST else text[: WIDEST - 1] + "…")


def data(entry: "TokenLogprob") -> dict[str, object]:
    """A token with its log-probability and the most probable alternatives, for JSON."""
    top = [{"token": one.text, "logprob": one.logprob} for one in entry.top]
    return {"token": entry.text, "logprob": entry.logprob, "top": top}


def reread(llm: "LLM", prompt: Sequence[int], written: Sequence[int], *, top: int = 0) -> "list[TokenLogprob]":
    """The log-probabilities of the written tokens after a prompt, in one pass over both."""
    import torch

    from llamita.generation.logprobs import logprobs_through, token_logprobs
    from llamita.tokenizer.token_bytes import TokenTexts

    with torch.no_grad():
        ids = torch.tensor([[*prompt, *written]], device=llm.model.device)
        states = llm.model.model(ids[:, :-1], use_cache=False).last_hidden_state[:, len(prompt) - 1 :]
        chosen = ids[:, len(prompt) :]
        logprobs = logprobs_through(states, llm.model.lm_head, chosen, top=top)
    return token_logprobs(TokenTexts(llm.tokenizer), chosen[0], type(logprobs)(*(column[0] for column in logprobs)))


class TokenAligner:
    """Finds the tokens that a shown text came from, although a character may have several tokens, and is shown late.

    after: the token ids before the text.
    """

    def __init__(self, tokenizer: "Tokenizer", after: Sequence[int] = ()) -> None:
        from llamita.tokenizer.stream import CONTEXT, StreamDecoder

        self._decoder = StreamDecoder(tokenizer)
        for token_id in after[-CONTEXT:]:
            self._decoder.push(token_id)
        self._waiting: deque[tuple[str, float]] = deque()  # text and probability, not yet shown
        self._seen = 0

    def runs(self, text: str, tokens: "Sequence[TokenLogprob]") -> Iterator[tuple[str, float]]:
        """The shown text, cut into what one token gave, each with its probability. tokens: all there are so far."""
        for entry in tokens[self._seen :]:
            self._waiting.append((self._decoder.push(entry.token_id), entry.probability))
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


def show(runs: Iterable[tuple[str, float]], screen: Screen) -> None:
    """Pieces of text in the colours of their probabilities, and the end of their line."""
    for text, probability in runs:
        screen.write(text, style_of(probability))
    screen.end_line()


def show_legend() -> None:
    """What the colours mean, in their colours on stderr, on as many lines as that takes."""
    lines, width = [""], 0
    for style, least in SCALE.items():
        name = f"{style} ≥ {least:.0%}" if least else style
        if width and width + len(name) > columns():
            lines.append("")
            width = 0
        lines[-1] += paint(name, style, sys.stderr) + "  "
        width += len(name) + 2
    print("\n".join(line.rstrip() for line in lines), file=sys.stderr)


def table(cells: Sequence[str]) -> list[str]:
    """The cells in as many columns as the terminal has room for, a line each."""
    width = max(map(len, cells), default=0) + 2
    columns = max(1, (shutil.get_terminal_size().columns - 2) // width)
    rows = (cells[start : start + columns] for start in range(0, len(cells), columns))
    return ["".join(cell.ljust(width) for cell in row).rstrip() for row in rows]
