"""The kernels as torch operations, which torch.compile and export see, chosen by one table; imports no Triton."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from llamita.errors import UnsupportedError
from llamita.kernels.cuda import reference
from llamita.kernels.cuda.planes import Planes

MOST_ROWS = 16  # of an input of few_rows and few_rows_blocks
OLDEST = (8, 0)  # the compute capability that has bf16 tensor cores

# (operation, what the tensors' device can do) -> the function that does it
TABLE: dict[tuple[str, str], str] = {
    ("few_rows", "triton"): "llamita.kernels.cuda.dense:few_rows",
    ("few_rows_blocks", "triton"): "llamita.kernels.cuda.blocks:few_rows_blocks",
    ("dequantize", "triton"): "llamita.kernels.cuda.blocks:dequantize",
    ("rms_norm", "triton"): "llamita.kernels.cuda.norm:rms_norm",
    ("add_rms_norm", "triton"): "llamita.kernels.cuda.norm:add_rms_norm",
    ("silu_gate", "triton"): "llamita.kernels.cuda.gate:silu_gate",
    ("rotate_and_store", "triton"): "llamita.kernels.cuda.rotary:rotate_and_store",
    ("few_rows", "torch"): "llamita.kernels.cuda.reference:few_rows",
    ("few_rows_blocks", "torch"): "llamita.kernels.cuda.reference:few_rows_blocks",
    ("dequantize", "torch"): "llamita.kernels.cuda.reference:dequantize",
    ("rms_norm", "torch"): "llamita.kernels.cuda.reference:rms_norm",
    ("add_rms_norm", "torch"): "llamita.kernels.cuda.reference:add_rms_norm",
    ("silu_gate", "torch"): "llamita.kernels.cuda.reference:silu_gate",
    ("rotate_and_store", "torch"): "llamita.kernels.cuda.reference:rotate_and_store",
}


def feature(device: torch.device) -> str:
    """ "triton" for GPUs that its kernels run on, where it is installed, else "torch"."""
    return _feature(device.type, device.index)


@cache
def _feature(kind: str, index: int | None) -> str:
    if kind != "cuda" or find_spec("triton") is None:
        return "torch"
    return "triton" if torch.cuda.get_device_capability(index) >= OLDEST else "torch"


def require(device: torch.device) -> None:
    """Raise UnsupportedError, which says what is missing, if the kernels cannot run on this device."""
    if device.type != "cuda":
        raise UnsupportedError(f"Triton's kernels run on a GPU, not on {device.type}: move the model to cuda first")
    if find_spec("triton") is None:
        raise UnsupportedError("Triton is not installed: pip install triton (it comes with torch's builds for CUDA)")
    if feature(device) == "torch":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise UnsupportedError(
            f"this GPU has compute capability {capability}, the kernels need {OLDEST[0]}.{OLDEST[1]}: "
            "use the model without them"
        )


@cache
def function(operation: str, with_feature: str) -> Callable[..., Any]:
    """The function of the table that does an operation."""
    module, _, name = TABLE[operation, with_feature].partition(":")
    return getattr(import_module(module), name)


def _chosen(operation: str, x: Tensor) -> Callable[..., Any]:
    return function(operation, feature(x.device))


@torch.library.custom_op("llamita_gpu::few_rows", mutates_args=())
def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (M, K), M at most 16, times weight (N, K), added up in fp32: (M, N) in x's dtype."""
    return _chosen("few_rows", x)(x, weight, bias)


@few_rows.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("llamita_gpu::few_rows_blocks", mutates_args=())
def few_rows_blocks(
    x: Tensor,
    words: Tensor,
    high: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    sub_scale: Tensor | None,
    sub_minimum: Tensor | None,
    bias: Tensor | None,
    bits: int,
    zero: int,
) -> Tensor:
    """x (M, K), M at most 16, times a quantized matrix (N, K), whose parts `Planes.tensors` are: (M, N)."""
    planes = Planes(words, high, scale, minimum, sub_scale, sub_minimum, bits=bits, zero=zero)
    return _chosen("few_rows_blocks", x)(x, planes, bias)


@few_rows_blocks.register_fake
def _(
    x: Tensor,
    words: Tensor,
    high: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    sub_scale: Tensor | None,
    sub_minimum: Tensor | None,
    bias: Tensor | None,
    bits: int,
    zero: int,
) -> Tensor:
    return x.new_empty(x.shape[0], words.shape[0])


@torch.library.custom_op("llamita_gpu::dequantize", mutates_args=())
def dequantize(
    words: Tensor,
    high: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    sub_scale: Tensor | None,
    sub_minimum: Tensor | None,
    bits: int,
    zero: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weights (N, K) of a quantized matrix, whose parts `Planes.tensors` are."""
    planes = Planes(words, high, scale, minimum, sub_scale, sub_minimum, bits=bits, zero=zero)
    return _chosen("dequantize", words)(planes, dtype)


@dequantize.register_fake
def _(
    words: Tensor,
    high: Tensor | None,
    scale: Tensor,
    minimum: Tensor | None,
    sub_scale: Tensor | None,
    sub_minimum: Tensor | None,
    bits: int,
    zero: int,
    dtype: torch.dtype,
) -> Tensor:
    rows, columns = Planes(words, high, scale, minimum, sub_scale, sub_minimum, bits=bits, zero=zero).shape
    return words.new_empty(rows, columns, dtype=dtype)


@torch.library.custom_op("llamita_gpu::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LlamaRMSNorm of x (..., D)."""
    return _chosen("rms_norm", x)(x, weight, eps)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(weight.dtype, x.dtype))


@torch.library.custom_op("llamita_gpu::add_rms_norm", mutates_args=())
def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + delta, and the sum: (..., D) x2."""
    return _chosen("add_rms_norm", x)(x, delta, weight, eps)


@add_rms_norm.register_fake
def _(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.promote_types(weight.dtype, x.dtype)), x.new_empty(x.shape)


@torch.library.custom_op("llamita_gpu::silu_gate", mutates_args=())
def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up: (..., F)."""
    return _chosen("silu_gate", gate)(gate, up)


@silu_gate.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("llamita_gpu::rotate_and_store", mutates_args=("keys", "values"))
def rotate_and_store(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate q (B, T, N, H) and k; write k, v (B, T, K, H) after `start` () slots of keys and values (B, K, S, H)."""
    return _chosen("rotate_and_store", q)(q, k, v, cos, sin, start, keys, values)


@rotate_and_store.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, start: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def references() -> dict[str, Callable[..., Any]]:
    """The plain-torch form of each operation."""
    return {operation: getattr(reference, operation) for operation, with_feature in TABLE if with_feature == "torch"}
