"""DRY: a penalty on continuing a repetition, which grows with its length (llama.cpp's definition)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llamita.sampling.history import NO_TOKEN
from llamita.sampling.per_row import PerRow, column, listed
from llamita.tokenizer.protocol import Tokenizer

LOG_OF_LARGEST = 88.7228391  # ln of the largest fp32: no penalty overflows
TAIL = 20  # the most tokens of a breaker after its first (llama.cpp's number)


def penalise_continuation(
    logits: Tensor,
    text: Tensor,
    *,
    multiplier: PerRow,
    base: PerRow,
    allowed_length: PerRow,
    length: PerRow = 0,
    breakers: Sequence[Sequence[int]] = (),
) -> Tensor:
    """Lower the tokens that would go on with a repetition by multiplier * base ** (repeated - allowed_length).

    `repeated` is the length of the longest end of the text (B, T) that stands in it before, followed by the token;
    repetitions shorter than allowed_length are free, and none reaches over the last breaker (a sequence of ids). A
    breaker of one token is never lowered itself. length: how many last tokens are looked at, 0 for all.
    """
    rows = len(logits)
    if text.shape[1] < 2 or not any(listed(multiplier, rows)):
        return logits
    text = _recent(text, [int(one) for one in listed(length, rows)])
    allowed = [int(one) for one in listed(allowed_length, rows)]
    largest = [_largest_exponent(one) for one in listed(base, rows)]
    reach = max(min(a + e, text.shape[1]) for a, e in zip(allowed, largest, strict=True))
    repeated = torch.minimum(_repeated(text, reach), _since_breaker(text, breakers)[:, None])  # (B, T - 1)
    longest = _longest(repeated, text[:, 1:], logits.shape[1])  # (B, V)
    longest[:, [ids[0] for ids in breakers if len(ids) == 1]] = -1
    excess = longest - torch.tensor(allowed, device=logits.device)[:, None]
    exponent = excess.clamp(min=0).minimum(torch.tensor(largest, device=logits.device)[:, None])
    penalty = column(multiplier, logits) * torch.pow(column(base, logits), exponent.to(logits))
    is_lowered = (excess >= 0) & torch.tensor([one != 0 for one in listed(multiplier, rows)], device=logits.device)[
        :, None
    ]
    return torch.where(is_lowered & (longest >= 0), logits - penalty, logits)


def breakers_of(strings: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The token sequences that write a breaking string: every token that has it, or begins it and how it goes on.

    Looks at the whole vocabulary; keep the result.
    """
    found: dict[tuple[int, ...], None] = {}
    for token in range(tokenizer.vocab_size):
        if tokenizer.id_to_token(token) is None:
            continue
        word = tokenizer.decode([token], skip_special_tokens=False)
        for string in strings:
            if string in word:
                found[(token,)] = None
                continue
            for rest in _rests(word, string):
                tail = tokenizer.encode(rest, add_special_tokens=False)[:TAIL]
                found[(token, *tail)] = None
    return list(found)


def _rests(word: str, string: str) -> list[str]:
    """The rest of a string whose beginning ends the word."""
    return [string[n:] for n in range(1, len(string)) if word.endswith(string[:n])]


def _recent(text: Tensor, lengths: Sequence[int]) -> Tensor:
    """The last tokens of each row, NO_TOKEN before them."""
    if not any(lengths):
        return text
    kept = torch.tensor([length or text.shape[1] for length in lengths], device=text.device)[:, None]
    columns = torch.arange(text.shape[1], 0, -1, device=text.device)
    return text.masked_fill(columns > kept, NO_TOKEN)


def _repeated(text: Tensor, reach: int) -> Tensor:
    """How many tokens up to each column equal the last ones of the text: (B, T) -> (B, T - 1), at most `reach`.

    -1 where the column has no token.
    """
    last = text.shape[1] - 1
    repeated = torch.zeros_like(text[:, :last])
    goes_on = torch.ones_like(repeated, dtype=torch.bool)
    for back in range(min(reach, last)):
        same = text[:, : last - back] == text[:, last - back, None]  # columns `back` to the one before the last
        goes_on = goes_on[:, min(back, 1) :] & same & (text[:, : last - back] >= 0)
        if not goes_on.any():
            break
        repeated[:, back:] += goes_on
    return repeated.masked_fill_(text[:, :last] < 0, -1)


def _longest(repeated: Tensor, following: Tensor, vocabulary: int) -> Tensor:
    """The longest repetition that each token continues: (B, V), -1 for none."""
    longest = repeated.new_full((len(repeated), vocabulary + 1), -1)
    index = torch.where((following < 0) | (following > vocabulary), vocabulary, following)
    return longest.scatter_reduce_(1, index, repeated, "amax")[:, :vocabulary]


def _since_breaker(text: Tensor, breakers: Sequence[Sequence[int]]) -> Tensor:
    """How many tokens (B,) follow the last breaker; of several that begin there, the longest counts."""
    columns = text.shape[1]
    width = max(map(len, breakers), default=0) + 1
    found = text.new_full((len(text),), -1)  # first column * width + length
    for length in sorted({len(ids) for ids in breakers if len(ids) <= columns}):
        sequences = torch.tensor([list(ids) for ids in breakers if len(ids) == length], device=text.device)
        starts = _starts(text, sequences)  # (B, columns - length + 1)
        ends = torch.arange(starts.shape[1], device=text.device) * width + length
        found = torch.maximum(found, torch.where(starts, ends, -1).amax(-1))
    behind = columns - found // width - found % width
    return torch.where(found < 0, columns, behind)


def _starts(text: Tensor, sequences: Tensor) -> Tensor:
    """The columns in which one of the sequences (N, length) begins."""
    length = sequences.shape[1]
    if length == 1:
        return torch.isin(text, sequences)
    windows = text.unfold(1, length, 1)  # (B, columns, length)
    hits = torch.zeros_like(windows[..., 0], dtype=torch.bool)
    for sequence in sequences:
        hits |= (windows == sequence).all(-1)
    return hits


def _largest_exponent(base: float) -> int:
    return int(LOG_OF_LARGEST / math.log(base)) if base > 1.000001 else 2**31
