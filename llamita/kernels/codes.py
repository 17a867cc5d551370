"""A quantized matrix, taken apart: unsigned codes, and what turns them back into weights."""

import torch
from torch import Tensor


class Codes:
    """The weights `scale * sub_scale * (code - zero) - minimum * sub_minimum`; a factor that is None is 1.

    codes: uint8 (N, K), each below 2**bits. zero: the code that stands for 0 where there is no minimum.
    scale, minimum: fp16 (N, K/32), or (N, K/256) where they have sub-scales; a minimum of None is 0.
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
    ) -> None:
        self.codes = codes
        self.bits = bits
        self.zero = zero
        self.scale = scale
        self.minimum = minimum
        self.sub_scale = sub_scale
        self.sub_minimum = sub_minimum

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.codes.shape
        return rows, columns

    def dequantize(self) -> Tensor:
        """The weights (N, K) in fp32."""
        scale = _product(self.scale, self.sub_scale)
        weights = self._spread(scale) * (self.codes.float() - self.zero)
        if self.minimum is not None:
            weights = weights - self._spread(_product(self.minimum, self.sub_minimum))
        return weights

    def take(self, rows: Tensor) -> "Codes":
        """Some of the rows, in this order."""
        parts = (self.scale, self.minimum, self.sub_scale, self.sub_minimum)
        scale, minimum, sub_scale, sub_minimum = (None if part is None else part[rows] for part in parts)
        assert scale is not None
        return Codes(
            self.codes[rows], bits=self.bits, zero=self.zero, scale=scale, minimum=minimum, sub_scale=sub_scale,
            sub_minimum=sub_minimum,
        )  # fmt: skip

    def _spread(self, factors: Tensor) -> Tensor:
        """Factors (N, groups) over the columns they are for: (N, K)."""
        return factors.repeat_interleave(self.codes.shape[1] // factors.shape[1], dim=1)


def _product(factor: Tensor, sub: Tensor | None) -> Tensor:
    """factor (N, blocks) times the finer sub (N, groups), in fp32."""
    if sub is None:
        return factor.float()
    return factor.float().repeat_interleave(sub.shape[1] // factor.shape[1], dim=1) * sub.to(torch.float32)
