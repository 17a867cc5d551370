"""Find the scales of 256-blocks with ggml's searches, for many blocks at once.

Weights lie transposed, a column a group: (32, groups) or (16, groups), so that sums over a group are made in ggml's
order, one row after the other, and the results are its own, bit for bit (llama.cpp's ggml-quants.c: make_qkx2_quants,
make_qx_quants). Everything is fp32, and every product is rounded before it is added.
"""

import torch
from torch import Tensor

NEARLY_ZERO = 1e-15  # ggml's GROUP_MAX_EPS: groups below it are all zero


def in_order(terms: Tensor) -> Tensor:
    """The sum over the first axis, from its first element to its last, each partial sum rounded."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def quotient(number: float, divisor: Tensor) -> Tensor:
    """number / divisor, rounded once: torch multiplies a plain number by the reciprocal, which rounds twice."""
    return divisor.new_tensor(number) / divisor


# Scale and minimum


def offset_blocks(blocks: Tensor, *, levels: int, first: float, tries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (blocks, 256), head fp16 (blocks, 2), sub-scales and sub-minima uint8 (blocks, 8) of Q4_K and Q5_K.

    levels: the highest code. first: by how many steps the first of `tries` widths, 0.1 apart, differs from the range.
    """
    x = blocks.view(-1, 32).t().contiguous()  # (32, groups)
    scale, minimum, codes = _fit_offset(x, levels=levels, first=first, tries=tries)
    block_scale, sub_scale = _six_bits(scale.view(-1, 8))
    block_minimum, sub_minimum = _six_bits(minimum.view(-1, 8))
    head = torch.stack((block_scale, block_minimum), dim=-1).half()  # (blocks, 2)
    d = (head[:, :1].float() * sub_scale).view(-1)
    rounded = ((x + (head[:, 1:].float() * sub_minimum).view(-1)) / d).round_().clamp_(0, levels)
    codes = torch.where(d == 0, codes, rounded)  # a scale that became 0 leaves the search's codes, as in ggml
    return codes.t().to(torch.uint8).reshape(-1, 256), head, sub_scale, sub_minimum


def _six_bits(factors: Tensor) -> tuple[Tensor, Tensor]:
    """The factors (blocks, 8) as a block's step (blocks,) times 0 to 63, uint8 (blocks, 8)."""
    largest = factors.amax(-1)
    largest = torch.where(largest > 0, largest, 0)  # never -0, which is another fp16
    inverse = torch.where(largest > 0, quotient(63, largest), 0)
    # ggml takes the byte of a rare negative factor, which is large, and only then the limit.
    steps = (factors * inverse[:, None]).round_().to(torch.int32) & 255
    return largest / 63, steps.clamp_(max=63).to(torch.uint8)


def _fit_offset(x: Tensor, *, levels: int, first: float, tries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and what is taken off (groups,), and codes (32, groups): the least weighted squared error of all tries."""
    mean_square = in_order(x * x) / 32
    weights = mean_square.double().sqrt().float() + x.abs()  # torch's fp32 root is off by a bit in a fifth of cases
    sum_w, sum_x = in_order(weights), in_order(weights * x)
    largest, minimum = x.amax(0), x.amin(0).clamp_(max=0)
    is_flat, flat_minimum = largest == minimum, minimum
    inverse = quotient(levels, largest - minimum)
    scale = 1 / inverse
    error = _error(x, weights, _codes(x, minimum, inverse, levels), scale, minimum)
    used_minimum, used_inverse = minimum, inverse
    steps = first + 0.1 * torch.arange(tries, dtype=torch.float32, device=x.device) + levels
    for step in steps.unbind():
        inverse = step / (largest - minimum)
        codes = _codes(x, minimum, inverse, levels)
        new_scale, new_minimum, is_fit = _solve(x, weights, codes, sum_w, sum_x)
        new_error = _error(x, weights, codes, new_scale, new_minimum)
        better = is_fit & (new_error < error)
        used_minimum = torch.where(better, minimum, used_minimum)  # that of the codes, before it is mended
        used_inverse = torch.where(better, inverse, used_inverse)
        scale, minimum = torch.where(better, new_scale, scale), torch.where(better, new_minimum, minimum)
        error = torch.where(better, new_error, error)
    scale = torch.where(is_flat, 0, scale)
    codes = torch.where(is_flat, 0, _codes(x, used_minimum, used_inverse, levels))
    return scale, -torch.where(is_flat, flat_minimum, minimum), codes


def _codes(x: Tensor, minimum: Tensor, inverse: Tensor, levels: int) -> Tensor:
    return (x - minimum).mul_(inverse).round_().clamp_(0, levels)


def _solve(x: Tensor, weights: Tensor, codes: Tensor, sum_w: Tensor, sum_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and minimum of the least weighted squared error for given codes, and where there is such a pair."""
    terms = torch.empty(x.shape[0], 3, x.shape[1], dtype=x.dtype, device=x.device)
    weighted = torch.mul(weights, codes, out=terms[:, 0])
    torch.mul(weighted, codes, out=terms[:, 1])
    torch.mul(weighted, x, out=terms[:, 2])
    sum_l, sum_ll, sum_lx = in_order(terms).unbind()
    determinant = sum_w * sum_ll - sum_l * sum_l
    scale = (sum_w * sum_lx - sum_x * sum_l) / determinant
    minimum = (sum_ll * sum_x - sum_l * sum_lx) / determinant
    is_above = minimum > 0
    return torch.where(is_above, sum_lx / sum_ll, scale), torch.where(is_above, 0, minimum), determinant > 0


def _error(x: Tensor, weights: Tensor, codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    off = (codes * scale).add_(minimum).sub_(x)
    return in_order(off.mul_(off).mul_(weights))


# Scale alone


def symmetric_blocks(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (blocks, 256), scale fp16 (blocks,), sub-scales int8 (blocks, 16) of Q6_K."""
    x = blocks.view(-1, 16).t().contiguous()  # (16, groups)
    scale, codes = _fit_symmetric(x, levels=32)
    scales = scale.view(-1, 16)
    largest = scales.gather(-1, scales.abs().argmax(-1, keepdim=True))  # with its sign
    is_zero = largest.abs() < NEARLY_ZERO
    inverse = quotient(-128, largest)
    sub_scale = torch.where(is_zero, 0, (inverse * scales).round_().clamp_(max=127)).to(torch.int8)
    block_scale = torch.where(is_zero, 0, 1 / inverse).half()
    d = (block_scale.float() * sub_scale).view(-1)
    codes = torch.where(d == 0, codes, (x / d).round_().clamp_(-32, 31) + 32)
    codes = codes.t().reshape(-1, 256).masked_fill(is_zero, 0)
    return codes.to(torch.uint8), block_scale.flatten(), sub_scale


def _fit_symmetric(x: Tensor, *, levels: int) -> tuple[Tensor, Tensor]:
    """Scale (groups,) and codes (16, groups) of the least squared error, each weight counting by its square."""
    largest = x.gather(0, x.abs().argmax(0, keepdim=True))[0]
    is_zero = largest.abs() < NEARLY_ZERO
    weights = x * x
    weighted = weights * x
    used = inverse = quotient(-levels, largest)
    sum_lx, sum_ll = _moments(x, inverse, weights, weighted, levels)
    scale = torch.where(sum_ll != 0, sum_lx / sum_ll, 0)
    best = scale * sum_lx
    steps = torch.tensor([float(step) for step in range(-9, 10) if step], dtype=torch.float32, device="cpu")
    offsets = torch.tensor(0.1, dtype=torch.float32, device="cpu") * steps
    for numerator in (-(levels + offsets)).to(x.device).unbind():
        inverse = numerator / largest
        sum_lx, sum_ll = _moments(x, inverse, weights, weighted, levels)
        better = (sum_ll > 0) & (sum_lx * sum_lx > best * sum_ll)
        scale = torch.where(better, sum_lx / sum_ll, scale)
        best = torch.where(better, scale * sum_lx, best)
        used = torch.where(better, inverse, used)
    codes = (used * x).round_().clamp_(-levels, levels - 1) + levels
    return torch.where(is_zero, 0, scale), torch.where(is_zero, 0, codes)


def _moments(x: Tensor, inverse: Tensor, weights: Tensor, weighted: Tensor, levels: int) -> Tensor:
    """Sums over each group of weight * x * code and of weight * code**2: (2, groups)."""
    codes = (x * inverse).round_().clamp_(-levels, levels - 1)
    terms = torch.empty(x.shape[0], 2, x.shape[1], dtype=x.dtype, device=x.device)
    torch.mul(weighted, codes, out=terms[:, 0])
    torch.mul(weights, codes, out=terms[:, 1]).mul_(codes)
    return in_order(terms)
