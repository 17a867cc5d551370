"""Linear layers and embeddings with a quantized weight, which replace nn.Linear and nn.Embedding."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from llamita.attention.autocast import compute_dtype
from llamita.errors import UnsupportedError
from llamita.kernels.cpu.packed_layout import Packed
from llamita.kernels.cuda.planes import Planes
from llamita.model.stored import StoredWeight
from llamita.quant.matrix import QuantizedMatrix


class _Quantized(StoredWeight[QuantizedMatrix]):
    """What both layers share: the matrix is no parameter, moves with the model and keeps its dtypes."""

    def kernel_view(self) -> Packed | Planes | None:
        """The packed weights that our kernels read; None: torch computes the product."""
        return self.matrix.kernel_view()

    def extra_repr(self) -> str:
        """What print(model) shows."""
        rows, columns = self.matrix.shape
        return f"{columns} -> {rows}, {self.matrix.format_name}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the matrix with the rest of the layer. Tied layers share one matrix on the new device too."""
        self.matrix = self.matrix.moved(fn)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UnsupportedError(
            f"{prefix.rstrip('.')} is quantized to {self.matrix.format_name}, which our state dicts and safetensors "
            "checkpoints cannot hold: write a GGUF file with `llamita quantize`, or save before quantizing"
        )


class QuantizedLinear(_Quantized):
    """Multiplies x (..., K) by a quantized matrix and adds bias: (..., N). Gradients reach x and bias only.

    Under autocast the result is in its dtype, and so is the product that gives the gradient of x.
    """

    bias: nn.Parameter | None

    def __init__(self, matrix: QuantizedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__(matrix)
        self.out_features, self.in_features = matrix.shape
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            out = _Product.apply(x, self.matrix)
            assert isinstance(out, Tensor)
            return out if self.bias is None else out + self.bias.to(out.dtype)
        return self.matrix.linear(x, self.bias).to(compute_dtype(x))


class QuantizedEmbedding(_Quantized):
    """Looks up rows of a quantized matrix by token ids (...): (..., K)."""

    like: Tensor

    def __init__(self, matrix: QuantizedMatrix, *, dtype: torch.dtype) -> None:
        super().__init__(matrix)
        self.num_embeddings, self.embedding_dim = matrix.shape
        # An empty buffer follows the model's dtype, so it names the dtype of the rows.
        self.register_buffer("like", torch.empty(0, dtype=dtype, device="cpu"), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up; raises IndexError for ids without a row, as nn.Embedding does."""
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            least, most = (int(end) for end in torch.aminmax(ids))
            if least < 0 or most >= self.num_embeddings:
                raise IndexError(f"ids run from {least} to {most}, but there are {self.num_embeddings} embeddings")
        return self.matrix.rows(ids).to(self.like.dtype)


class _Product(torch.autograd.Function):
    """The product. Its gradient in x ignores the rounding of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: QuantizedMatrix) -> Tensor:
        ctx.matrix, ctx.of_x = matrix, x.dtype
        is_autocast = torch.is_autocast_enabled(x.device.type)
        ctx.dtype = compute_dtype(x) if is_autocast else torch.promote_types(x.dtype, torch.float32)
        return matrix.linear(x).to(compute_dtype(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad.to(ctx.dtype) @ ctx.matrix.dequantize(ctx.dtype)).to(ctx.of_x), None
