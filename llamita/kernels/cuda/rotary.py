# type: ignore  # Kernels are no Python that a type checker knows, and Triton need not be installed.
"""Rotate queries and keys and write keys and values into a static cache, in one kernel. Equals
reference.rotate_and_store."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(first, second, cos, sin, ROUNDS: tl.constexpr, dtype: tl.constexpr):
    """first * cos + second * sin in fp32; ROUNDS: each product is rounded, as tensors of that dtype would be."""
    left = first * cos
    right = second * sin
    if ROUNDS:
        left = left.to(dtype).to(tl.float32)
        right = right.to(dtype).to(tl.float32)
    return left + right


@triton.jit
def _rotate_and_store(
    q, k, v, cos, sin, start, out, keys, values,
    tokens, slots, q_heads, k_heads,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, angle_batch, angle_token,
    HALF: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """One head of one token: a query's, a key's or a value's, in this order along the second axis of the grid."""
    batch = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    head = tl.program_id(1)
    low = tl.arange(0, BLOCK)
    is_here = low < HALF
    slot = tl.load(start).to(tl.int64) + token
    fits = low < tl.where(slot < slots, HALF, 0)
    if head < q_heads + k_heads:
        if head < q_heads:
            source = q + batch * q_batch + token * q_token + head * q_head
        else:
            source = k + batch * k_batch + token * k_token + (head - q_heads) * k_head
        angles = batch * angle_batch + token * angle_token + low
        first = tl.load(source + low, mask=is_here, other=0.0).to(tl.float32)
        second = tl.load(source + HALF + low, mask=is_here, other=0.0).to(tl.float32)
        cos_first = tl.load(cos + angles, mask=is_here, other=0.0).to(tl.float32)
        cos_second = tl.load(cos + HALF + angles, mask=is_here, other=0.0).to(tl.float32)
        sin_first = tl.load(sin + angles, mask=is_here, other=0.0).to(tl.float32)
        sin_second = tl.load(sin + HALF + angles, mask=is_here, other=0.0).to(tl.float32)
        dtype: tl.constexpr = q.dtype.element_ty
        first_rotated = _rotate(first, -second, cos_first, sin_first, ROUNDS, dtype).to(dtype)
        second_rotated = _rotate(second, first, cos_second, sin_second, ROUNDS, dtype).to(dtype)
        if head < q_heads:
            target = out + (tl.program_id(0).to(tl.int64) * q_heads + head) * (2 * HALF)
            tl.store(target + low, first_rotated, mask=is_here)
            tl.store(target + HALF + low, second_rotated, mask=is_here)
        else:
            target = keys + ((batch * k_heads + head - q_heads) * slots + slot) * (2 * HALF)
            tl.store(target + low, first_rotated.to(keys.dtype.element_ty), mask=fits)
            tl.store(target + HALF + low, second_rotated.to(keys.dtype.element_ty), mask=fits)
    else:
        head = head - q_heads - k_heads
        source = v + batch * v_batch + token * v_token + head * v_head
        target = values + ((batch * k_heads + head) * slots + slot) * (2 * HALF)
        for half in tl.static_range(2):
            copied = tl.load(source + half * HALF + low, mask=is_here, other=0.0)
            tl.store(target + half * HALF + low, copied.to(values.dtype.element_ty), mask=fits)


def rotate_and_store(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate q (B, T, N, H); write rotated k and v (B, T, K, H) after `start` slots of keys and values (B, K, S, H)."""
    batch, tokens, q_heads, head_dim = q.shape
    k_heads, slots = k.shape[2], keys.shape[2]
    assert keys.is_contiguous() and values.is_contiguous(), "a static cache lies in one piece"
    q, k, v, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, cos, sin))
    assert cos.stride() == sin.stride()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.numel():
        _rotate_and_store[(batch * tokens, q_heads + 2 * k_heads)](
            q, k, v, cos, sin, start, out, keys, values,
            tokens, slots, q_heads, k_heads,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1),
            HALF=head_dim // 2, BLOCK=triton.next_power_of_2(head_dim // 2), ROUNDS=cos.dtype == q.dtype,
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out
