"""The definition of the CPU kernels' arithmetic: every kernel must equal it bit for bit, on any processor.

It is slow, in plain torch. A result depends only on its own operands: not on the other rows, on how a prompt was cut,
on how a cache was filled, on threads or on the instruction set.

- Every sum is fp32, made of `fma`, and has one order: sixteen lanes take the columns in turn; `tree` adds the lanes.
- Numbers in bf16 are taken in pairs, the second of a pair first, as the instruction for such pairs does.
- A product reads x as the matrix is: rounded to bf16 for a matrix in bf16, as bytes for quantized blocks, else fp32.
- Attention reads keys in blocks of 64, counted from the sequence's own first token, with one softmax over all of them.
- `exponential`, `silu_times` and the angles are sequences of IEEE operations, never those of a library.
- Denormal numbers are 0, as the instruction for pairs of bf16 takes them. Here only `exponential` says so: sums and
  products do not come near them.
"""

import math

import torch
from torch import Tensor

from llamita.kernels.quantized_blocks import QuantizedBlocks

LANES, KEYS, GROUP = 16, 64, 32  # lanes of a sum, keys of a block, columns that share an activation scale
NEVER = -1e30  # less than any score
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, -0.693145751953125, -1.428606765330187e-06


def fma(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x * y + z in fp32, rounded once.

    The product is exact in fp64. The sum is rounded to odd there, which leaves the one rounding to fp32 to decide
    (Boldo and Melquiond, IEEE Trans. Comput. 57, 2008).
    """
    product, addend = torch.broadcast_tensors(x.double() * y.double(), z.double())
    total = product + addend
    other = total - product
    rest = (product - (total - other)) + (addend - other)  # what the sum lost (Knuth)
    is_even = (total.contiguous().view(torch.int64) & 1) == 0
    odd = torch.nextafter(total, torch.sign(rest) * math.inf)
    return torch.where((rest != 0) & is_even & total.isfinite(), odd, total).float()


def tree(lanes: Tensor) -> Tensor:
    """The sum over the last axis, of 16: the upper half is added to the lower, again and again."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(x: Tensor) -> Tensor:
    """e to the power of x fp32, to about one unit in the last place."""
    x = x.clamp(-104.0, 88.0)
    whole = (x * x.new_tensor(LOG2_E)).round()
    rest = fma(whole, x.new_tensor(LN2_LOW), fma(whole, x.new_tensor(LN2_HIGH), x))
    power = torch.full_like(x, 1.0 / 5040)
    for factor in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        power = fma(power, rest, x.new_tensor(factor))
    half = (whole.int() >> 1).double()
    power = (power * (2.0**half).float()) * (2.0 ** (whole.double() - half)).float()
    return torch.where(power < torch.finfo(torch.float32).tiny, 0.0, power)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up in fp32."""
    return gate / (1.0 + exponential(-gate)) * up


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of x fp32 (..., D) by weight (D,): the root is fp64."""
    lanes = _lanes(x, LANES)
    squares = torch.zeros_like(lanes[..., 0, :])
    for step in range(lanes.shape[-2]):
        squares = fma(lanes[..., step, :], lanes[..., step, :], squares)
    epsilon = float(torch.tensor(epsilon, dtype=torch.float32))
    factor = 1.0 / (tree(squares).double() / x.shape[-1] + epsilon).sqrt()
    return weight.float() * (x * factor.float()[..., None])


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) in fp32, fp16 or bf16, plus bias (N,): fp32 (..., N)."""
    total = torch.zeros(*x.shape[:-1], len(weight), LANES)
    columns: tuple[slice, ...] = (slice(None),)
    if weight.dtype == torch.bfloat16:
        x, columns = x.to(torch.bfloat16), (slice(1, None, 2), slice(0, None, 2))  # the second of each pair first
    x, weight = (_lanes(one.float(), LANES * len(columns)) for one in (x, weight))
    for step in range(x.shape[-2]):
        for some in columns:
            total = fma(x[..., None, step, some], weight[..., step, some], total)
    return tree(total) if bias is None else tree(total) + bias.float()


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K) as int8 (..., K) and fp32 scales (..., K/32): the largest of 32 becomes 127, halves go to even."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, most.new_tensor(127.0) / most, 0)
    return (groups * inverse).round().to(torch.int8).flatten(-2), (most / 127).squeeze(-1)


def product_quantized(x: Tensor, codes: QuantizedBlocks, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times a quantized matrix (N, K), plus bias (N,): fp32 (..., N).

    One block of 32 columns after the other is added. The dot products inside a block are integers, so exact.
    """
    x_codes, x_scales = quantize_activations(x)
    scale, minimum = codes.factors()
    width = codes.shape[1] // scale.shape[1]  # columns of a scale: 32, or 16 where a block has two
    total = torch.zeros(*x.shape[:-1], codes.shape[0])
    for block in range(codes.shape[1] // GROUP):
        columns = slice(GROUP * block, GROUP * (block + 1))
        part, numbers, x_scale = x_codes[..., columns].float(), codes.numbers(columns), x_scales[..., block, None]
        if width == GROUP // 2:
            low, high = (part[..., half] @ numbers[:, half].t() for half in (slice(0, width), slice(width, None)))
            both = fma(high, scale[:, 2 * block + 1], low * scale[:, 2 * block])
            total = fma(both, x_scale, total)
        elif minimum is not None:
            minima = -part.sum(-1, keepdim=True) * minimum[:, block]
            total = fma(fma(part @ numbers.t(), scale[:, block], minima), x_scale, total)
        else:
            total = fma(part @ numbers.t() * x_scale, scale[:, block], total)
    return total if bias is None else total + bias.float()


def angles(positions: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., H/2) in fp32 of positions (...) times frequencies (H/2,), both times factor.

    The angle is rounded to fp32, as the model rounds it; of it the kernels make both in fp64 (`functions`), and round.
    """
    angle = (positions[..., None].float() * frequencies.float()).double()
    return angle.cos().float() * factor, angle.sin().float() * factor


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, factor: float = 1.0) -> Tensor:
    """Heads x fp32 (B, T, N, H) rotated by the angles (B, T, H/2), times factor: the first half against the second."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = cosines[:, :, None] * x.new_tensor(factor), sines[:, :, None] * x.new_tensor(factor)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def attention(q: Tensor, keys: Tensor, values: Tensor, *, positions: Tensor, window: int) -> Tensor:
    """Attention of queries (T, N, H) over one sequence's keys and values (S, K, H): fp32 (T, N, H).

    q: fp32, rotated and scaled. positions: int64 (T,), the token that each query is; it sees those up to itself, the
    last `window` of them. Queries and factors are rounded as a cache in bf16 is. A query before the first token gets 0.
    """
    is_rounded = keys.dtype == torch.bfloat16
    q, group = _rounded(q, is_rounded), q.shape[1] // keys.shape[1]
    largest, total = torch.full(q.shape[:2], NEVER), torch.zeros(q.shape[:2])  # of the scores, and of the factors
    out, own = torch.zeros(q.shape), positions[:, None, None]
    for start in range(0, len(keys), KEYS):
        k, v = (_padded(x[start : start + KEYS], group) for x in (keys, values))  # (64, N, H)
        token = torch.arange(start, start + KEYS)
        seen = (token <= own) & (token > own - window) & (token < len(keys))  # (T, 1, 64)
        scores = torch.where(seen, _scores(q, k), NEVER)
        new = torch.maximum(largest, scores.amax(-1))
        largest, rescale = new, exponential(largest - new)
        factors = torch.where(seen, exponential(scores - largest[..., None]), 0.0)
        four = factors.unflatten(-1, (4, LANES)).unbind(-2)
        total = fma(total, rescale, tree(four[0] + four[1] + four[2] + four[3]))
        out, factors = out * rescale[..., None], _rounded(factors, is_rounded)
        for pair in range(0, KEYS, 2):
            for i in (pair + 1, pair):
                out = fma(factors[..., i, None], v[i], out)
    return torch.where(total > 0, 1.0 / total, 0.0)[..., None] * out


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, *, starts: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (T, N, H), k and v (T, K, H) in causal attention, given that of its result (T, N, H).

    starts: int64 (T,), the first token that each sees. In the dtype of q; its sums have no order of their own.
    """
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
    token = torch.arange(len(q))
    seen = (token <= token[:, None]) & (token >= starts[:, None])  # (T, T)
    scores = torch.einsum("inh,jnh->nij", q, keys) * scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    d_weights = torch.einsum("inh,jnh->nij", d_out, values)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
    d_q = torch.einsum("nij,jnh->inh", d_scores, keys)
    d_k, d_v = (torch.einsum("nij,inh->jnh", x, y) for x, y in ((d_scores, q), (weights, d_out)))
    d_k, d_v = (x.unflatten(1, (-1, group)).sum(2) for x in (d_k, d_v))  # query heads share theirs
    return d_q, d_k, d_v


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """Queries (T, N, H) with keys (64, N, H): (T, N, 64). The second of each pair of columns is added first."""
    total = torch.zeros(*q.shape[:2], KEYS)
    for pair in range(0, q.shape[-1], 2):
        for i in (pair + 1, pair):
            total = fma(q[..., i, None], keys[..., i].t(), total)
    return total


def _padded(x: Tensor, group: int) -> Tensor:
    """A block of keys or values (up to 64, K, H) in fp32 for every query head, padded with zeros: (64, N, H)."""
    padding = (0, 0, 0, 0, 0, KEYS - len(x))
    return torch.nn.functional.pad(x.float(), padding).repeat_interleave(group, dim=1)


def _rounded(x: Tensor, is_rounded: bool) -> Tensor:
    return x.to(torch.bfloat16).float() if is_rounded else x


def _lanes(x: Tensor, size: int) -> Tensor:
    """The last axis in steps of `size` columns, padded with zeros: (..., steps, size)."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
