"""The products as operators of torch: what they say of themselves is true, and a compiler sees through around them."""

import pytest
import torch
from torch import Tensor, nn

from llamita.kernels import reference
from llamita.kernels.cpu.linear import linear, linear_few, linear_packed
from llamita.kernels.cpu.packed_layout import pack
from tests.unit.kernels.cpu.launch import DTYPES, quantized


@pytest.mark.parametrize("shape", [(256,), (3, 256), (2, 1, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_few_equals_the_plain_product(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(35, 256).to(dtype), torch.randn(35).to(dtype)
    out = linear_few(x, weight, bias)
    assert out.dtype == dtype and out.shape == (*shape[:-1], 35)
    expected = reference.few(x, weight, bias).to(dtype)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-5 if dtype == torch.float32 else 8e-3)
    strided = torch.randn(256, 35).to(dtype).t()
    assert torch.equal(linear_few(x, strided, None), linear_few(x, strided.contiguous(), None))


@pytest.mark.parametrize("with_bias", [True, False])
def test_operators_are_what_they_say(with_bias: bool) -> None:
    x, bias = torch.randn(2, 3, 256), torch.randn(17) if with_bias else None
    packed = pack(quantized("q4_k", 17, 256), "q4_k")
    torch.library.opcheck(linear_packed, (x, packed.stream, "q4_k", 17, bias))
    torch.library.opcheck(linear_few, (x, torch.randn(17, 256), bias))
    torch.library.opcheck(linear_few, (x.bfloat16(), torch.randn(17, 256).bfloat16(), bias))


def test_they_compile_whole_and_for_any_number_of_rows() -> None:
    packed, weight = pack(quantized("q8_0", 256, 256), "q8_0"), torch.randn(19, 256)

    def twice(x: Tensor) -> Tensor:
        return linear_few(nn.functional.silu(linear(x, packed)) * 2, weight, None)

    compiled = torch.compile(twice, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (1, 2, 5):
        x = torch.randn(rows, 256)
        torch.testing.assert_close(compiled(x), twice(x), rtol=0, atol=0)
    torch.compiler.reset()


def test_they_are_exported() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Buffer(torch.randn(19, 64))

        def forward(self, x: Tensor) -> Tensor:
            return linear_few(x, self.weight, None)

    layer, x = Layer(), torch.randn(2, 64)
    exported = torch.export.export(layer, (x,))
    assert "llamita.linear_few" in exported.graph_module.print_readable(print_output=False)
    assert torch.equal(exported.module()(x), layer(x))


def test_no_rows_give_no_rows() -> None:
    packed = pack(quantized("q4_0", 17, 64), "q4_0")
    assert linear(torch.empty(0, 64), packed).shape == (0, 17)
    assert linear_few(torch.empty(2, 0, 64), torch.randn(5, 64), None).shape == (2, 0, 5)
