"""What the kernels compute, in plain torch: slow, and the measure of every kernel."""

import torch
from torch import Tensor

from llamita.kernels.quantized_blocks import QuantizedBlocks

GROUP = 32  # columns that share an activation scale


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., K) as int8 (..., K) and fp32 scales (..., K/32): the largest of 32 becomes 127, halves go to even."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, most.new_tensor(127.0) / most, 0)
    return (groups * inverse).round().to(torch.int8).flatten(-2), (most / 127).squeeze(-1)


def linear(x: Tensor, codes: QuantizedBlocks, bias: Tensor | None = None) -> Tensor:
    """Activations (..., K) times the matrix (N, K), plus bias (N,): (..., N) in x's dtype, computed in fp32.

    Each group of columns: xs * (scale * sub_scale * dot(number, xq) - minimum * sub_minimum * sum(xq)), where
    xq and xs are the activations as int8 and their scale; one group after the other is added.
    """
    xq, xs = quantize_activations(x.reshape(-1, x.shape[-1]))
    scale, minimum = codes.factors()
    width = codes.shape[1] // scale.shape[1]
    out = torch.zeros(xq.shape[0], codes.shape[0], dtype=torch.float32, device=x.device)
    for group, start in enumerate(range(0, codes.shape[1], width)):
        part = xq[:, start : start + width].float()
        dot = part @ codes.numbers(slice(start, start + width)).t()  # exact: integers below 2**24
        value = dot * scale[:, group]
        if minimum is not None:
            value -= part.sum(-1, keepdim=True) * minimum[:, group]
        out += xs[:, start // GROUP, None] * value
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def rows(codes: QuantizedBlocks, index: Tensor) -> Tensor:
    """The rows of the matrix (N, K) that index (...) names: fp32 (..., K)."""
    return codes.take(index.reshape(-1)).dequantize().view(*index.shape, -1)


def few(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K), plus bias (N,): fp32 (..., N), whatever the dtypes."""
    return torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x (..., D) over the root of its mean square, times weight (D,), in fp32."""
    x = x.float()
    return weight.float() * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon))


def gate(first: Tensor, second: Tensor) -> Tensor:
    """silu(first) * second, both (..., F), in fp32."""
    return torch.nn.functional.silu(first.float()) * second.float()


def angles(positions: Tensor, frequencies: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., H/2) of positions (...) times frequencies (H/2,), both times factor."""
    turned = positions[..., None].float() * frequencies.float()
    return turned.cos() * factor, turned.sin() * factor


def turn(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Heads x (B, T, N, H) turned by the angles (B, T, H/2): the first half of a head against its second."""
    first, second = x.float().chunk(2, dim=-1)
    cosines, sines = cosines[:, :, None], sines[:, :, None]
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    angles: tuple[Tensor, Tensor],
    room: tuple[Tensor, Tensor],
    slot: int,
    first: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    """What T new tokens a row see of a cache, themselves included: (B, T, N, H) in fp32.

    q (B, T, N, H), k and v (B, T, K, H), not yet turned by the angles (B, T, H/2). room: the cache's keys and values
    (B, K, capacity, H), into which k and v go from `slot` on, in its dtype. first (B,): each row's first visible slot;
    a token before it sees itself. window: how many slots a token sees, its own included.
    """
    end = slot + q.shape[1]
    for buffer, new in zip(room, (turn(k, *angles), v), strict=True):
        buffer[:, :, slot:end] = new.transpose(1, 2).to(buffer.dtype)
    keys, values = (x[:, :, :end].float().repeat_interleave(q.shape[2] // k.shape[2], dim=1) for x in room)
    scores = scale * turn(q, *angles).transpose(1, 2) @ keys.mT  # (B, N, T, S)
    place = torch.arange(end, device=q.device)
    own = place[slot:, None]
    seen = (place <= own) & (place > own - window) & (place >= first[:, None, None]) | (place == own)  # (B, T, S)
    return (scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ values).transpose(1, 2)
