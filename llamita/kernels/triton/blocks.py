"""A block-quantized matrix times few rows: codes become weights in registers. Equals reference.few_rows_blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamita.kernels.triton.dense import TOKENS, operand
from llamita.kernels.triton.planes import GROUP, Planes, lanes


@triton.jit
def _code(word, high, field: tl.constexpr, BITS: tl.constexpr):
    """The codes of one field of the words, int32."""
    if BITS == 8:
        code = (word >> (8 * field)) & 255
    else:
        code = (word >> (4 * field)) & 15
    if BITS == 5:
        code = code | (((high >> field) & 1) << 4)
    if BITS == 6:
        code = code | (((high >> (2 * field)) & 3) << 4)
    return code


@triton.jit
def _factor(factor, sub, row, group, groups, is_here, part: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr):
    """scale * sub_scale or minimum * sub_minimum of rows and groups, fp32; part: which half of a group in spans of 16."""
    wide = tl.load(factor + row * (groups // PER) + group // PER, mask=is_here, other=0.0).to(tl.float32)
    if sub is not None:
        place = (row * groups + group) * (32 // SPAN) + part
        wide = wide * tl.load(sub + place, mask=is_here, other=0).to(tl.float32)
    return wide


@triton.jit
def _one_row(
    x, words, high, scale, minimum, sub_scale, sub_minimum, bias, out, rows, groups,
    BITS: tl.constexpr, ZERO: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    line = row.to(tl.int64)[:, None]
    lane = tl.arange(0, LANES)
    total = tl.zeros((ROWS, GROUPS), tl.float32)
    FIELDS: tl.constexpr = 32 // LANES
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        is_group = group < groups
        is_here = is_row[:, None] & is_group[None, :]
        place = (line * groups + group[None, :])[:, :, None] * LANES + lane[None, None, :]
        word = tl.load(words + place, mask=is_here[:, :, None], other=0)
        upper = word
        if high is not None:
            upper = tl.load(high + place, mask=is_here[:, :, None], other=0).to(tl.int32)
        for part in tl.static_range(32 // SPAN):
            dot = tl.zeros((ROWS, GROUPS, LANES), tl.float32)
            seen = tl.zeros((GROUPS, LANES), tl.float32)
            for step in tl.static_range(FIELDS * SPAN // 32):
                column = group[:, None] * 32 + (part * SPAN + step * LANES) + lane[None, :]
                inputs = tl.load(x + column, mask=is_group[:, None], other=0.0).to(tl.float32)
                code = _code(word, upper, part * (FIELDS * SPAN // 32) + step, BITS)
                dot += code.to(tl.float32) * inputs[None, :, :]
                seen += inputs
            sums = tl.sum(seen, axis=1)[None, :]
            factor = _factor(scale, sub_scale, line, group[None, :], groups, is_here, part, SPAN, PER)
            # Codes are unsigned: what stands for zero is taken off once a group rather than once a weight.
            total += factor * (tl.sum(dot, axis=2) - ZERO * sums)
            if minimum is not None:
                total -= _factor(minimum, sub_minimum, line, group[None, :], groups, is_here, part, SPAN, PER) * sums
    result = tl.sum(total, axis=1)
    if bias is not None:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _some_rows(
    x, words, high, scale, minimum, sub_scale, sub_minimum, bias, out, tokens, rows, groups,
    BITS: tl.constexpr, ZERO: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    is_row, is_token = row < rows, token < tokens
    line = row.to(tl.int64)[:, None]
    spot = tl.arange(0, GROUPS * LANES)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    FIELDS: tl.constexpr = 32 // LANES
    for first in range(0, groups, GROUPS):
        group = first + spot // LANES
        is_group = group < groups
        is_here = is_row[:, None] & is_group[None, :]
        place = line * (groups * LANES) + first * LANES + spot[None, :]
        word = tl.load(words + place, mask=is_here, other=0)
        upper = word
        if high is not None:
            upper = tl.load(high + place, mask=is_here, other=0).to(tl.int32)
        for part in tl.static_range(32 // SPAN):
            factor = _factor(scale, sub_scale, line, group[None, :], groups, is_here, part, SPAN, PER)
            offset = factor * ZERO
            if minimum is not None:
                offset += _factor(minimum, sub_minimum, line, group[None, :], groups, is_here, part, SPAN, PER)
            for step in tl.static_range(FIELDS * SPAN // 32):
                code = _code(word, upper, part * (FIELDS * SPAN // 32) + step, BITS)
                weights = code.to(tl.float32) * factor - offset
                column = group * 32 + (part * SPAN + step * LANES) + spot % LANES
                inputs = tl.load(
                    x + token[None, :] * (groups * 32) + column[:, None],
                    mask=is_group[:, None] & is_token[None, :],
                    other=0.0,
                )
                total = tl.dot(weights.to(OPERAND), inputs.to(OPERAND), total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    target = out + token[None, :] * rows + row[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_token[None, :])


@triton.jit
def _dequantize(
    words, high, scale, minimum, sub_scale, sub_minimum, out, rows, groups,
    BITS: tl.constexpr, ZERO: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    is_here = group < groups
    place = (row * groups + group) * LANES + lane
    word = tl.load(words + place, mask=is_here, other=0)
    upper = word
    if high is not None:
        upper = tl.load(high + place, mask=is_here, other=0).to(tl.int32)
    FIELDS: tl.constexpr = 32 // LANES
    for part in tl.static_range(32 // SPAN):
        factor = _factor(scale, sub_scale, row, group, groups, is_here, part, SPAN, PER)
        offset = factor * 0.0
        if minimum is not None:
            offset = _factor(minimum, sub_minimum, row, group, groups, is_here, part, SPAN, PER)
        for step in tl.static_range(FIELDS * SPAN // 32):
            code = _code(word, upper, part * (FIELDS * SPAN // 32) + step, BITS)
            weights = (code - ZERO).to(tl.float32) * factor - offset
            column = (row * groups + group) * 32 + (part * SPAN + step * LANES) + lane
            tl.store(out + column, weights.to(out.dtype.element_ty), mask=is_here)


def few_rows_blocks(x: Tensor, planes: Planes, bias: Tensor | None) -> Tensor:
    """x (M, K), M at most 16, times the quantized matrix (N, K): (M, N) in x's dtype."""
    tokens = x.shape[0]
    rows, columns = planes.shape
    x = x.contiguous()
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    if tokens == 1:
        _one_row[(triton.cdiv(rows, 4),)](
            x, *planes.tensors, bias, out, rows, columns // GROUP,
            **layout(planes), ROWS=4, GROUPS=64, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return out
    assert tokens <= TOKENS
    _some_rows[(triton.cdiv(rows, 16),)](
        x, *planes.tensors, bias, out, tokens, rows, columns // GROUP,
        **layout(planes), TOKENS=TOKENS, ROWS=16, GROUPS=64 // lanes(planes.bits), OPERAND=operand(x.dtype, x.dtype),
        num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def dequantize(planes: Planes, dtype: torch.dtype) -> Tensor:
    """The weights (N, K) of the planes."""
    rows, columns = planes.shape
    out = torch.empty(rows, columns, dtype=dtype, device=planes.words.device)
    grid = (rows, triton.cdiv(columns // GROUP, 32))
    _dequantize[grid](
        *planes.tensors, out, rows, columns // GROUP,
        **layout(planes), GROUPS=32, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def layout(planes: Planes) -> dict[str, int]:
    """What a kernel is compiled for: the widths and spans of a format."""
    columns, sub = planes.shape[1], planes.sub_scale
    return {
        "BITS": planes.bits,
        "ZERO": planes.zero,
        "LANES": lanes(planes.bits),
        "SPAN": GROUP if sub is None else columns // sub.shape[1],
        "PER": columns // planes.scale.shape[1] // GROUP,
    }
