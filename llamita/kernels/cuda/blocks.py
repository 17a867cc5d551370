# type: ignore  # Kernels are no Python that a type checker knows, and Triton need not be installed.
"""A block-quantized matrix times few rows: codes become weights in registers. Equals reference.few_rows_blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from llamita.kernels.cuda.dense import TOKENS, operand
from llamita.kernels.cuda.planes import GROUP, Planes, lanes

MOST_VECTORS = 4  # rows of x from which on tensor cores cost less than a multiply-add each


@triton.jit
def _code(word, high, field: tl.constexpr, BITS: tl.constexpr):
    """The codes of one field of the words, int32."""
    WIDTH: tl.constexpr = 8 if BITS == 8 else 4
    code = (word >> (WIDTH * field)) & (2**WIDTH - 1)
    if BITS == 5:
        code = code | (((high >> field) & 1) << 4)
    if BITS == 6:
        code = code | (((high >> (2 * field)) & 3) << 4)
    return code


@triton.jit
def _factor(factor, sub, row, group, groups, is_here, part: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr):
    """scale * sub_scale or minimum * sub_minimum, fp32; part: which half of a group, where spans are of 16."""
    wide = tl.load(factor + row * (groups // PER) + group // PER, mask=is_here, other=0.0).to(tl.float32)
    if sub is not None:
        place = (row * groups + group) * (32 // SPAN) + part
        wide = wide * tl.load(sub + place, mask=is_here, other=0).to(tl.float32)
    return wide


@triton.jit
def _add_field(total, word, upper, inputs, field: tl.constexpr, BITS: tl.constexpr):
    """total and the codes of one field times inputs, fp32.

    The field is not shifted down: its place is a power of two, which is exact to take off the inputs instead, and
    these are shared by several rows. That leaves three operations a weight: and, convert, multiply-add.
    """
    WIDTH: tl.constexpr = 8 if BITS == 8 else 4
    low: tl.constexpr = (2**WIDTH - 1) << (WIDTH * field)
    total += (word & low).to(tl.float32) * (inputs * 2.0 ** (-WIDTH * field))
    if BITS == 5 or BITS == 6:
        EXTRA: tl.constexpr = BITS - 4
        above: tl.constexpr = (2**EXTRA - 1) << (EXTRA * field)
        total += (upper & above).to(tl.float32) * (inputs * 2.0 ** (4 - EXTRA * field))
    return total


@triton.jit
def _vector(
    x, words, high, scale, minimum, sub_scale, sub_minimum, bias, out, tokens, rows, groups,
    BITS: tl.constexpr, ZERO: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One to four rows of x: multiply-adds, the codes of a group in one thread."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    line = row.to(tl.int64)[:, None]
    spot = tl.arange(0, GROUPS * LANES)
    each = tl.arange(0, TOKENS)
    total = tl.zeros((TOKENS, ROWS, GROUPS), tl.float32)
    FIELDS: tl.constexpr = SPAN // LANES
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        is_here = is_row[:, None] & (group < groups)[None, :]
        is_word = is_row[:, None] & (spot < (groups - first) * LANES)[None, :]
        # Two dimensions, so that every Triton lays words and inputs out alike: four neighbours to a thread.
        place = line * (groups * LANES) + first * LANES + spot[None, :]
        word = tl.load(words + place, mask=is_word, other=0).to(tl.uint32, bitcast=True)
        upper = word
        if high is not None:
            # Said so that Triton sees runs of LANES alone and gives a thread the same four as of the words.
            beside = line * (groups * LANES) + (first + spot // LANES)[None, :] * LANES + (spot % LANES)[None, :]
            upper = tl.load(high + beside, mask=is_word, other=0).to(tl.int32).to(tl.uint32, bitcast=True)
        for part in tl.static_range(32 // SPAN):
            factor = _factor(scale, sub_scale, line, group[None, :], groups, is_here, part, SPAN, PER)
            # Codes are unsigned: what stands for zero is taken off once a group rather than once a weight.
            offset = factor * ZERO
            if minimum is not None:
                offset += _factor(minimum, sub_minimum, line, group[None, :], groups, is_here, part, SPAN, PER)
            for token in tl.static_range(TOKENS):
                dot = tl.zeros((ROWS, GROUPS * LANES), tl.float32)
                seen = tl.zeros((1, GROUPS * LANES), tl.float32)
                ahead = tl.where(token < tokens, groups - first, 0)
                is_read = (spot < ahead * LANES)[None, :]
                for step in tl.static_range(FIELDS):
                    column = (spot // LANES) * 32 + (part * SPAN + step * LANES) + spot % LANES
                    source = x + (token * groups + first) * 32 + column[None, :]
                    inputs = tl.load(source, mask=is_read, other=0.0).to(tl.float32)
                    dot = _add_field(dot, word, upper, inputs, part * FIELDS + step, BITS)
                    seen += inputs
                by_group = tl.sum(tl.reshape(dot, (ROWS, GROUPS, LANES)), axis=2)
                inputs_by_group = tl.sum(tl.reshape(seen, (1, GROUPS, LANES)), axis=2)
                sums = factor * by_group - offset * inputs_by_group
                total += tl.where(each[:, None, None] == token, sums[None, :, :], 0.0)
    result = tl.sum(total, axis=2)
    if bias is not None:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]
    target = out + each[:, None] * rows + row[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(each < tokens)[:, None] & is_row[None, :])


@triton.jit
def _tile(
    x, words, high, scale, minimum, sub_scale, sub_minimum, bias, out, tokens, rows, groups,
    BITS: tl.constexpr, ZERO: tl.constexpr, LANES: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Up to sixteen rows of x: tensor cores, the weights rounded to x's dtype."""
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
    if tokens <= MOST_VECTORS:
        # As many threads as words of one row, four by four: inputs and words then lie in the same threads.
        _vector[(triton.cdiv(rows, 4 if tokens == 1 else 2),)](
            x, *planes.tensors, bias, out, tokens, rows, columns // GROUP,
            **layout(planes), TOKENS=triton.next_power_of_2(tokens), ROWS=4 if tokens == 1 else 2, GROUPS=64,
            num_warps=lanes(planes.bits) // 2, enable_fp_fusion=True,
        )  # fmt: skip
        return out
    assert tokens <= TOKENS
    _tile[(triton.cdiv(rows, 16),)](
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
