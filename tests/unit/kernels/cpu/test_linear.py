"""The quantized product as an operator of torch: what it says of itself is true, and compilers see around it."""

import pytest
import torch
from torch import Tensor, nn

from llamita.kernels import reference
from llamita.kernels.cpu.linear import linear, linear_packed
from llamita.kernels.cpu.packed_layout import Packed, pack
from tests.unit.kernels.cpu.launch import quantized


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_operator_is_what_it_says(with_bias: bool) -> None:
    x, bias = torch.randn(2, 3, 256), torch.randn(17) if with_bias else None
    codes = quantized("q4_k", 17, 256)
    packed = pack(codes, "q4_k")
    torch.library.opcheck(linear_packed, (x, packed.stream, "q4_k", 17, bias))
    assert torch.equal(linear(x, packed, bias), reference.product_quantized(x, codes, bias))


def test_it_compiles_whole_and_for_any_number_of_rows() -> None:
    packed = pack(quantized("q8_0", 256, 256), "q8_0")

    def twice(x: Tensor) -> Tensor:
        return linear(nn.functional.silu(linear(x, packed)) * 2, packed)

    compiled = torch.compile(twice, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (1, 2, 5):
        x = torch.randn(rows, 256)
        torch.testing.assert_close(compiled(x), twice(x), rtol=0, atol=0)
    torch.compiler.reset()


def test_it_is_exported() -> None:
    class Layer(nn.Module):
        def __init__(self, packed: Packed) -> None:
            super().__init__()
            self.stream = nn.Buffer(packed.stream)

        def forward(self, x: Tensor) -> Tensor:
            return linear_packed(x, self.stream, "q8_0", 19, None)

    layer, x = Layer(pack(quantized("q8_0", 19, 64), "q8_0")), torch.randn(2, 64)
    exported = torch.export.export(layer, (x,))
    assert "llamita.linear_packed" in exported.graph_module.print_readable(print_output=False)
    assert torch.equal(exported.module()(x), layer(x))


def test_no_rows_give_no_rows() -> None:
    packed = pack(quantized("q4_0", 17, 64), "q4_0")
    assert linear(torch.empty(0, 64), packed).shape == (0, 17)
