"""Layers whose weights are a quantized matrix, in the place of nn.Linear and nn.Embedding."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from llamita.errors import UnsupportedError
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cuda.planes import Planes
from llamita.model.stored import StoredWeight
from llamita.quant.matrix import Matrix


class _Quantized(StoredWeight):
    """What both layers share: the matrix, which is no parameter, moves with the model and keeps its dtypes."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def stored(self) -> Matrix:
        """The matrix."""
        return self.matrix

    def kernel_view(self) -> Packed | Planes | None:
        """What the kernels of its device read, or None where it is in no block format or has none."""
        return self.matrix.kernel_view()

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        rows, columns = self.matrix.shape
        return f"{columns} -> {rows}, {self.matrix.name}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the matrix where `.to(...)` moves the rest. Twins share it; to be there already costs nothing."""
        self.matrix.move(fn)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UnsupportedError(
            f"{prefix.rstrip('.')} is quantized to {self.matrix.name}, which no state dict and no safetensors "
            "checkpoint of ours holds: write a GGUF file with `llamita quantize`, or save before quantizing"
        )


class QuantizedLinear(_Quantized):
    """x (..., K) times a quantized matrix, plus bias: (..., N). Gradients reach x, and the bias, not the matrix."""

    bias: nn.Parameter | None

    def __init__(self, matrix: Matrix, bias: nn.Parameter | None = None) -> None:
        super().__init__(matrix)
        self.out_features, self.in_features = matrix.shape
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            out = _Product.apply(x, self.matrix)
            assert isinstance(out, Tensor)
            return out if self.bias is None else out + self.bias
        return self.matrix.linear(x, self.bias)


class QuantizedEmbedding(_Quantized):
    """The rows of a quantized matrix that token ids (...) name: (..., K)."""

    like: Tensor

    def __init__(self, matrix: Matrix, *, dtype: torch.dtype) -> None:
        super().__init__(matrix)
        self.num_embeddings, self.embedding_dim = matrix.shape
        # Empty: what follows the model's dtype, and says in which the rows are given.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up; raises IndexError for ids that have no row, as nn.Embedding does."""
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            least, most = (int(end) for end in torch.aminmax(ids))
            if least < 0 or most >= self.num_embeddings:
                raise IndexError(f"ids run from {least} to {most}, but there are {self.num_embeddings} embeddings")
        return self.matrix.rows(ids).to(self.like.dtype)


class _Product(torch.autograd.Function):
    """The product, and its gradient in x as if x had not been rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.linear(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad.float() @ ctx.matrix.dequantize()).to(grad.dtype), None
