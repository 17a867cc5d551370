"""The arguments of the kernels of training, as `arguments` has those of the others."""

from typing import NamedTuple

from llamita.kernels.cpu.arguments import Argument


class TrainedNorm(NamedTuple):
    """RMSNorm of x (rows, columns), for training: out bf16, rstd fp32 (rows,). scale, epsilon: fp32.

    columns: a multiple of 32. A chunk is `lines` rows, here and below.
    """

    x: Argument
    scale: Argument
    out: Argument
    rstd: Argument
    rows: Argument
    columns: Argument
    lines: Argument
    epsilon: Argument


class NormGradients(NamedTuple):
    """The gradient d_x of TrainedNorm's x from d_out fp32, and each chunk's part of that of scale, fp32 (chunks, D)."""

    x: Argument
    scale: Argument
    rstd: Argument
    d_out: Argument
    d_x: Argument
    d_scale: Argument
    rows: Argument
    columns: Argument
    lines: Argument


class GateGradients(NamedTuple):
    """out = silu(gate) * up of `size` bf16, a multiple of 16, and the gradients of both. A chunk is `chunk` of them."""

    gate: Argument
    up: Argument
    out: Argument
    d_out: Argument
    d_gate: Argument
    d_up: Argument
    chunk: Argument
    size: Argument


class Rotate(NamedTuple):
    """x bf16 (tokens, heads, 2 * half) rotated by cosines and sines fp32 (tokens, 2 * half), these times sign fp32.

    half: a multiple of 16. A chunk is a token.
    """

    x: Argument
    out: Argument
    cosines: Argument
    sines: Argument
    heads: Argument
    half: Argument
    sign: Argument


class SoftmaxGradient(NamedTuple):
    """Logits bf16 (n, columns) become, in place, the gradients of the summed loss, each row times its total.

    targets: int64 (n,), below 0 as 0. totals: fp32 (n,), the sums of exponentials. own: fp32 (n,), the target's logit
    less the largest. columns: a multiple of 16. A chunk is a row.
    """

    logits: Argument
    targets: Argument
    totals: Argument
    own: Argument
    columns: Argument


class SumOfProducts(NamedTuple):
    """A sum of products, for `gemm_bf16`: out (lines, columns), of the dtype of this number, fp32 or bf16.

    terms: int64 (products, fields of Term). columns: a multiple of 16. `adds`: whether out is added to. A chunk is
    one of `panels` even parts of the columns, at most PANEL of them, with `lines_of_chunk` lines, a multiple of 16;
    chunks go over the columns first.
    """

    terms: Argument
    products: Argument
    out: Argument
    lines: Argument
    columns: Argument
    dtype: Argument
    adds: Argument
    lines_of_chunk: Argument
    panels: Argument


class Term(NamedTuple):
    """A product of packed lines with a matrix.

    left: see PackLines, sixteen lines in `step` bytes, of which `pairs` pairs of columns are taken. right: a matrix of
    this dtype with rows `stride` bytes apart: (columns, 2 * pairs), pairs a multiple of 16, where it is turned, else
    (length, columns).
    """

    left: Argument
    step: Argument
    pairs: Argument
    right: Argument
    stride: Argument
    length: Argument
    dtype: Argument
    is_turned: Argument


class PackLines(NamedTuple):
    """x (rows, columns) as lines for `gemm_bf16`: words of two bf16, of sixteen lines at a time (pairs, 16).

    Lines are rows, of a multiple of 32 columns, and a chunk is sixteen; or columns, of which there are a multiple of
    16, and a chunk is 64.
    """

    x: Argument
    out: Argument
    rows: Argument
    columns: Argument
