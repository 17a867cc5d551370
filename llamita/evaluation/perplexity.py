"""Perplexity and bits per byte of a text, as lm-eval and transformers' guide compute them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from llamita.data.records import SEPARATOR
from llamita.errors import UsageError
from llamita.generation.logprobs import Logprobs, logprobs_through
from llamita.generation.protocol import LanguageModel
from llamita.model.likelihood import perplexity
from llamita.tokenizer.protocol import Tokenizer

CHUNK = 512  # tokens whose logits are in memory at once
LENGTH = 1024  # tokens of a window, at most, unless another number is asked for
Progress = Callable[[int, int], None]  # gets the finished windows, and all of them


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """The negative log-likelihood of a text in nats, and how many tokens and UTF-8 bytes were predicted."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss per token. Comparable between models of the same tokenizer only."""
        return perplexity(self.nats, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of the text, comparable between all models."""
        return self.nats / math.log(2) / self.bytes

    def __add__(self, other: "TextScore") -> "TextScore":
        return TextScore(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids that the model reads, of which the last `predicted` are scored."""

    ids: Sequence[int]
    predicted: int


def windows(ids: Sequence[int], *, first: int, length: int, stride: int) -> Iterator[Window]:
    """Cut ids into windows in which every id is predicted once; `first` is the id that comes before the text.

    A window has `length` ids to read and predicts at most `stride` new ones, the first window `length`. With
    stride = length these are lm-eval's rolling windows; a smaller stride gives each token more context, as in
    transformers' guide "Perplexity of fixed-length models".
    """
    text = [first, *ids]
    start, size = 0, length
    while start < len(ids):
        stop = min(start + size, len(ids))
        yield Window(text[max(0, stop - length) : stop + 1], stop - start)
        start, size = stop, stride


def score_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    length: int,
    stride: int | None = None,
    progress: Progress = no_progress,
) -> TextScore:
    """Score every token of a text, whose documents stand between form feeds; each begins after BOS (or EOS).

    length: tokens of a window. stride: new tokens of a window (default: all of it, so that windows do not overlap).
    The plain model computes, in its own dtype: the numbers are transformers'.
    Raises UsageError for an empty text, impossible sizes, and a tokenizer without BOS and EOS.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise UsageError(f"the stride is {stride}: it must be from 1 to the length of a window, {length}")
    documents = [document for document in text.split(SEPARATOR) if document]
    if not documents:
        raise UsageError("the text is empty: give a file that has text")
    first, cut = start_token(tokenizer), []
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False)
        cut += windows(ids, first=first, length=length, stride=stride)
    nats = []
    for number, window in enumerate(cut):
        progress(number, len(cut))
        nats += (-logprobs(model, window).chosen.double()).tolist()
    return TextScore(math.fsum(nats), len(nats), sum(len(document.encode()) for document in documents))


def start_token(tokenizer: Tokenizer) -> int:
    """The id that the first token of a text is predicted from: BOS, or EOS where there is none, as in lm-eval.

    Raises UsageError for a tokenizer with neither.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise UsageError(
            "this tokenizer has neither a BOS nor an EOS token to begin a text: name one in tokenizer_config.json"
        )
    return start


@torch.no_grad()
def logprobs(model: LanguageModel, window: Window) -> Logprobs:
    """The log-probabilities and ranks (predicted,) of the predicted ids of a window."""
    ids = torch.tensor([list(window.ids)], device=model.device)  # (1, T + 1)
    hidden_states = model.last_hidden_state(ids[:, :-1])[:, -window.predicted :]  # (1, predicted, D)
    found = logprobs_through(hidden_states, model.head, ids[:, -window.predicted :], chunk=CHUNK)
    return Logprobs(*(column[0] for column in found))
