"""Products with a quantized matrix on a GPU: the kernel for few rows, or torch's product of dequantized weights."""

import torch.nn.functional as F
from torch import Tensor

from llamita.kernels.cuda import operations
from llamita.kernels.cuda.planes import Planes


def linear(x: Tensor, planes: Planes, bias: Tensor | None = None) -> Tensor:
    """Multiply x (..., K) by a quantized matrix (N, K) and add bias (N,): (..., N) in x's dtype."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.shape[0] <= operations.MOST_ROWS:
        out = operations.few_rows_blocks(flat, *planes.tensors, bias, planes.bits, planes.zero)
    else:
        weight = operations.dequantize(*planes.tensors, planes.bits, planes.zero, x.dtype)
        out = F.linear(flat, weight, None if bias is None else bias.to(x.dtype))
    return out.view(*x.shape[:-1], -1)
