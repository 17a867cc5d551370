"""A quantized matrix, taken apart: unsigned codes, and what turns them back into weights."""

import torch
from torch import Tensor

from llamita.kernels.bits import powers_of_two


class QuantizedBlocks:
    """The weights `scale * sub_scale * number - minimum * sub_minimum`; a factor that is None is 1.

    codes: uint8 (N, K), each below 2**bits; its number is code - zero, or values[code].
    values: int8 (2**bits,) or None.
    scale, minimum: fp16 (N, K/32), or (N, K/256) where they have sub-scales; a minimum of None is 0. A scale may be
    int8: the exponent of a power of two.
    sub_scale: uint8 (N, K/32) or int8 (N, K/16). sub_minimum: uint8 (N, K/32).
    """

    def __init__(
        self,
        codes: Tensor,
        *,
        bits: int,
        zero: int,
        scale: Tensor,
        minimum: Tensor | None = None,
        sub_scale: Tensor | None = None,
        sub_minimum: Tensor | None = None,
        values: Tensor | None = None,
    ) -> None:
        self.codes = codes
        self.bits = bits
        self.zero = zero
        self.scale = scale
        self.minimum = minimum
        self.sub_scale = sub_scale
        self.sub_minimum = sub_minimum
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """The weights (N, K) in fp32."""
        scale, minimum = self.factors()
        weights = self._spread(scale) * self.numbers()
        return weights if minimum is None else weights - self._spread(minimum)

    def numbers(self, columns: slice = slice(None)) -> Tensor:
        """The numbers that the codes of some columns stand for, in fp32: (N, columns)."""
        codes = self.codes[:, columns]
        return codes.float() - self.zero if self.values is None else self.values.float()[codes.int()]

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """What the numbers of each group are multiplied by, and what is taken off then: fp32 (N, groups)."""
        scale = _product(self.scale, self.sub_scale)
        return scale, None if self.minimum is None else _product(self.minimum, self.sub_minimum)

    def take(self, rows: Tensor) -> "QuantizedBlocks":
        """Some of the rows, in this order."""
        parts = (self.scale, self.minimum, self.sub_scale, self.sub_minimum)
        scale, minimum, sub_scale, sub_minimum = (None if part is None else part[rows] for part in parts)
        assert scale is not None
        return QuantizedBlocks(
            self.codes[rows], bits=self.bits, zero=self.zero, scale=scale, minimum=minimum, sub_scale=sub_scale,
            sub_minimum=sub_minimum, values=self.values,
        )  # fmt: skip

    def _spread(self, factors: Tensor) -> Tensor:
        """Factors (N, groups) over the columns they are for: (N, K)."""
        return factors.repeat_interleave(self.codes.shape[1] // factors.shape[1], dim=1)


def _product(factor: Tensor, sub: Tensor | None) -> Tensor:
    """factor (N, blocks) times the finer sub (N, groups), in fp32."""
    wide = powers_of_two(factor) if factor.dtype == torch.int8 else factor.float()
    if sub is None:
        return wide
    return wide.repeat_interleave(sub.shape[1] // factor.shape[1], dim=1) * sub.to(torch.float32)
