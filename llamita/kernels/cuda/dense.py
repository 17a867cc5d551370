# type: ignore  # Kernels are no Python that a type checker knows, and Triton need not be installed.
"""A matrix times few rows: every weight is read once, and added up in fp32. Equals reference.few_rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 16  # rows of a tensor core's tile; fewer are filled up with zeros


@triton.jit
def _one_row(x, weight, bias, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < rows
    line = weight + row.to(tl.int64)[:, None] * columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < columns
        weights = tl.load(line + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
        inputs = tl.load(x + column, mask=is_column, other=0.0)
        total += weights.to(tl.float32) * inputs.to(tl.float32)[None, :]
    result = tl.sum(total, axis=1)
    if bias is not None:
        result += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=is_row)


@triton.jit
def _some_rows(
    x, weight, bias, out, tokens, rows, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    is_row, is_token = row < rows, token < tokens
    line = weight + row.to(tl.int64)[:, None] * columns
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < columns
        weights = tl.load(line + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
        inputs = tl.load(
            x + token[None, :] * columns + column[:, None], mask=is_column[:, None] & is_token[None, :], other=0.0
        )
        total = tl.dot(weights.to(OPERAND), inputs.to(OPERAND), total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    target = out + token[None, :] * rows + row[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_token[None, :])


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (M, K), M at most 16, times weight (N, K): (M, N) in x's dtype."""
    tokens, columns = x.shape
    rows = weight.shape[0]
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    if tokens == 1:
        tile = _tile_of_one(weight)
        _one_row[(triton.cdiv(rows, tile[0]),)](
            x, weight, bias, out, rows, columns,
            ROWS=tile[0], COLUMNS=tile[1], num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return out
    assert tokens <= TOKENS
    _some_rows[(triton.cdiv(rows, 16),)](
        x, weight, bias, out, tokens, rows, columns,
        TOKENS=TOKENS, ROWS=16, COLUMNS=256 // weight.element_size(), OPERAND=operand(x.dtype, weight.dtype),
        num_warps=4, num_stages=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _tile_of_one(weight: Tensor) -> tuple[int, int]:
    """Rows and columns that a program reads at a time: 8 KiB, four loads of 16 bytes a thread."""
    return 4, 2048 // weight.element_size()


def operand(inputs: torch.dtype, weights: torch.dtype) -> tl.dtype:
    """What tensor cores multiply: the dtype of both, or fp32 where they differ, so that neither is rounded."""
    names = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    return names.get(inputs, tl.float32) if inputs == weights else tl.float32
