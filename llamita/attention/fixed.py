"""Attention that adds in one fixed order: a token's result does not depend on the other tokens of a pass.

Keys lie in blocks of 64 and queries in blocks of 32 rows, both counted from the first real token of their own text, so
neither padding, nor other rows, nor the cut into passes moves a token within its block. All products are of blocks, of
one shape each, in fp32; the blocks' sums are added in order. A block that a query does not see adds zeros, which change
nothing. The scores' maximum is exact in any order. Equals eager.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llamita.attention.mask import Mask
from llamita.errors import UnsupportedError

KEYS = 64  # of a block
ROWS = 32  # of a block of queries: the query heads that share a key head, for as many tokens as fit
Columns = slice | Tensor


class Text(NamedTuple):
    """Where the tokens of one text, or of one document of several, lie in a pass, and where they stand in the text.

    queries, keys: their columns among T and S. query, key: the number of the first of each in the text.
    """

    row: int
    queries: Columns
    keys: Columns
    query: int
    key: int


class Sight(NamedTuple):
    """What the queries of a text see, in whole blocks.

    bias: fp32 (blocks, 1 | N, tokens, key blocks * KEYS), -inf where unseen. spans: for each query block the first key
    block that it reads, and one more than the last.
    """

    text: Text
    bias: Tensor
    spans: list[tuple[int, int]]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention in fixed blocks: q (B, N, T, H), k and v (B, K, S, H) -> (B, T, N, H).

    A query that sees nothing, or stands in the padding, gets zeros. The mask's padding and documents say where a text
    begins. A 4-D mask of the user has neither: there the blocks count from column 0, so padding does shift them.
    Gradients flow, and are not independent of the batch. Raises UnsupportedError for dropout.
    """
    if dropout:
        raise UnsupportedError('attn_implementation="fixed" has no dropout: set attention_dropout to 0 or use sdpa')
    tokens = max(1, ROWS // (q.shape[1] // k.shape[1]))
    if "fixed" not in mask.prepared:
        mask.prepared["fixed"] = _sights(mask, q.shape[0], tokens)
    out = torch.zeros_like(q)
    for sight in mask.prepared["fixed"]:
        row, queries, keys = sight.text[:3]
        scaled = q[row][:, queries].float() * scale
        out[row][:, queries] = _attend(scaled, k[row][:, keys], v[row][:, keys], sight, tokens)
    return out.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight, tokens: int) -> Tensor:
    """One text: q (N, T, H) fp32, scaled, k and v (K, S, H) -> (N, T, H)."""
    text, heads, count = sight.text, k.shape[0], q.shape[1]
    q = _blocks(q, text.query, tokens).unflatten(1, (heads, -1)).flatten(2, 3)  # (blocks, K, rows, H)
    k = _blocks(k.float(), text.key, KEYS).transpose(2, 3)  # (key blocks, K, H, KEYS)
    v = _blocks(F.pad(v.float(), (0, 1), value=1.0), text.key, KEYS)  # the ones sum up the weights
    results = []
    for block, bias, (first, last) in zip(q, sight.bias, sight.spans, strict=True):
        seen = _of_heads(bias[..., first * KEYS : last * KEYS], heads, block.shape[1] // tokens)
        results.append(_mix(block, k[first:last], v[first:last], seen))
    out = torch.stack(results).unflatten(2, (-1, tokens))  # (blocks, K, N/K, tokens, H)
    start = text.query % tokens
    return out.permute(1, 2, 0, 3, 4).flatten(2, 3).flatten(0, 1)[:, start : start + count]


def _mix(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """One block of queries: q (K, rows, H), k (n, K, H, KEYS), v (n, K, KEYS, H + 1), bias (K | 1, rows, n * KEYS)."""
    if not len(k):
        return torch.zeros_like(q)
    scores = torch.cat([torch.bmm(q, block) for block in k], dim=-1) + bias
    highest = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)  # of nothing: -inf
    weights = torch.exp(scores - highest).unflatten(-1, (-1, KEYS)).unbind(-2)
    total = torch.zeros_like(v[0, :, :1])  # +0.0, which stays so whatever zeros are added
    for weight, block in zip(weights, v, strict=True):
        total = total + torch.bmm(weight.contiguous(), block)
    sums = total[..., -1:]  # at least 1, the highest score's weight, or 0 where nothing is seen
    return total[..., :-1] / (sums + (sums == 0))  # no clamp: at a sum of 1 torch 2.14's has no gradient


def _of_heads(bias: Tensor, heads: int, groups: int) -> Tensor:
    """What a block sees, (1 | N, tokens, S), for rows of grouped heads: (1 | K, N/K * tokens, S)."""
    if bias.shape[0] == 1:
        return bias.repeat(1, groups, 1)
    return bias.unflatten(0, (heads, groups)).flatten(1, 2)


def _blocks(x: Tensor, number: int, size: int) -> Tensor:
    """Cut x (heads, length, H), whose first token has this number, at the multiples of `size`, zeros where nothing is.

    (blocks, heads, size, H), contiguous, so that every product reads memory of one form.
    """
    front, back = _margins(number, x.shape[1], size)
    return F.pad(x, (0, 0, front, back)).unflatten(1, (-1, size)).transpose(0, 1).contiguous()


def _margins(number: int, length: int, size: int) -> tuple[int, int]:
    return number % size, -(number + length) % size


def _sights(mask: Mask, batch: int, tokens: int) -> list[Sight]:
    """What each text of the pass sees; rows without padding or documents of their own share one."""
    differ = any(x is not None for x in (mask.padding, mask.documents, mask.given))
    if not differ:
        first = _sight(mask, _whole(mask, 0), tokens)
        return [first._replace(text=first.text._replace(row=row)) for row in range(batch)]
    return [_sight(mask, text, tokens) for row in range(batch) for text in _texts(mask, row)]


def _sight(mask: Mask, text: Text, tokens: int) -> Sight:
    given = mask.given is not None and mask.given.is_floating_point()
    every = mask.visible
    visible = every[min(text.row, len(every) - 1)][:, text.queries][..., text.keys]  # (1 | N, T, S)
    bias = torch.zeros_like(visible, dtype=torch.float32)
    if given:
        added = mask.additive(torch.float32)
        bias = added[min(text.row, len(added) - 1)][:, text.queries][..., text.keys]
    bias = bias.masked_fill(~visible, -torch.inf)
    margins = (*_margins(text.key, bias.shape[2], KEYS), *_margins(text.query, bias.shape[1], tokens))
    bias = F.pad(bias, margins, value=-torch.inf).unflatten(1, (-1, tokens)).transpose(0, 1)
    seen = (bias > -torch.inf).unflatten(-1, (-1, KEYS)).any(-1).any(2).any(1)  # (blocks, key blocks)
    return Sight(text, bias, [_span(line) for line in seen.tolist()])


def _span(seen: list[bool]) -> tuple[int, int]:
    """The number of the first block that is seen, and one more than that of the last."""
    if True not in seen:
        return 0, 0
    return seen.index(True), len(seen) - seen[::-1].index(True)


def _whole(mask: Mask, row: int) -> Text:
    """A row that is one text, without holes; only slots that are filled count as keys, unless the user says which."""
    offset = int(mask.offset)
    keys = mask.keys if mask.given is not None else offset - mask.first + mask.queries
    return Text(row, slice(0, mask.queries), slice(0, keys), offset, mask.first)


def _texts(mask: Mask, row: int) -> Iterator[Text]:
    """The texts of a row, by its padding and its documents."""
    if mask.given is not None:
        yield _whole(mask, row)
        return
    ahead = int(mask.offset) - mask.first  # the first query's column among the keys
    filled = ahead + mask.queries
    real = torch.ones(filled, dtype=torch.bool, device=mask.device)
    dropped = mask.first
    if mask.padding is not None:
        real = mask.padding[row, :filled]
        dropped = 0 if mask.dropped is None else int(mask.dropped[row])
    if mask.documents is None:
        yield from _text(row, real, real[ahead:], ahead, dropped)
        return
    of_query, of_key = mask.documents[0][row], mask.documents[1][row, :filled]
    for document in of_query.unique_consecutive().tolist():
        in_document = of_query == document
        yield from _text(row, real & (of_key == document), real[ahead:] & in_document, ahead, dropped)


def _text(row: int, keys: Tensor, queries: Tensor, ahead: int, dropped: int) -> Iterator[Text]:
    """The text whose real keys (S,) and queries (T,) these are, where it has any queries."""
    if bool(queries.any()):
        before = int(keys[: ahead + int(queries.int().argmax())].sum())
        yield Text(row, _columns(queries), _columns(keys), dropped + before, dropped)


def _columns(real: Tensor) -> Columns:
    """The columns that are real: a slice where they stand together, which needs no copy."""
    columns = real.nonzero().flatten()
    first, last = int(columns[0]), int(columns[-1])
    return slice(first, last + 1) if last - first + 1 == len(columns) else columns
