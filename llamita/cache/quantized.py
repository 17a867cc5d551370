"""A cache in 8 or 4 bits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.errors import UsageError

BITS = (4, 8)


@dataclass(frozen=True)
class Blocks:
    """Numbers in groups, each group with a scale and a lowest value of its own; tokens, or groups of them, on axis 2.

    codes: uint8 (B, K, S, G, H), of 4-bit codes two in a byte: the first half of the last axis in the low bits.
    scale, low: the same but for 1 in place of the group's axis, in the dtype of what was stored.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Blocks":
        """All three tensors changed alike."""
        return Blocks(change(self.codes), change(self.scale), change(self.low))


def quantize(x: Tensor, bits: int, dim: int) -> Blocks:
    """Round x (B, K, S, G, H) to 2^bits steps between the lowest and the highest value along `dim`."""
    low, high = x.aminmax(dim=dim, keepdim=True)
    levels = 2**bits - 1
    scale = ((high.float() - low.float()) / levels).to(x.dtype)
    # Codes are counted from the scale and the lowest value as they are stored, so rounding those costs little.
    step = torch.where(scale == 0, 1, scale).float()
    codes = ((x.float() - low.float()) / step).round().clamp(0, levels).to(torch.uint8)
    if bits == 4:
        first, second = codes.chunk(2, dim=-1)
        codes = first | (second << 4)
    return Blocks(codes, scale, low)


def dequantize(blocks: Blocks, bits: int) -> Tensor:
    """The numbers that the codes stand for: (B, K, S, G, H) in the dtype that was stored."""
    codes = torch.cat((blocks.codes & 15, blocks.codes >> 4), dim=-1) if bits == 4 else blocks.codes
    return torch.addcmul(blocks.low, codes.to(blocks.scale.dtype), blocks.scale)


class QuantizedCache(Cache):
    """Keeps the last `residual` tokens as they are and the older ones in 8 or 4 bits, as KIVI does (arXiv:2402.02750).

    Keys have channels that are large in every token, so each group is `group` tokens of one channel; values have none,
    so each group is `group` channels of one token (the largest common divisor with the head dim). A token is quantized
    once, when `group` of them have left the residual window, never again. A number then takes bits + 2 d / group bits
    where those stored have d: at 64 and bf16 8.5 or 4.5 instead of 16. A pass attends to its own tokens as they are.

    Raises UsageError for other bits, and impossible sizes.
    """

    def __init__(self, bits: int = 8, *, group: int = 64, residual: int = 128, unrotated: bool = False) -> None:
        super().__init__(unrotated=unrotated)
        if bits not in BITS:
            raise UsageError(f"a cache of {bits} bits is not known: use 8 or 4")
        if group < 2 or group % 2 or residual < 0:
            raise UsageError(f"group={group}, residual={residual}: give an even group of at least 2, a residual >= 0")
        self.bits, self.group, self.residual = bits, group, residual
        self._old: list[tuple[Blocks, Blocks]] = []  # of each layer that has some; `keys` and `values` hold the rest

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append k and v (B, K, T, H); returns all keys and values (B, K, S, H), the older ones rounded."""
        if layer == len(self.keys):
            self.keys.append(k[:, :, :0])
            self.values.append(v[:, :, :0])
        self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
        self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        in_sight = self._whole(layer)
        leaving = (self.keys[layer].shape[2] - self.residual) // self.group * self.group
        if leaving > 0:
            self._quantize(layer, leaving)
        return in_sight

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self._rounded(0) + self.keys[0].shape[2] if self.keys else 0

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; of a group cut in two, what stays is no longer rounded further."""
        kept = self.resolved_length(length)
        if kept == 0:
            self.keys, self.values, self.positions, self._old = [], [], None, []
            return
        for layer in range(len(self.keys)):
            self._crop_layer(layer, kept)
        self.positions = None if self.positions is None else self.positions[:, :kept]

    def _crop_layer(self, layer: int, length: int) -> None:
        start = min(length, self._rounded(layer)) // self.group * self.group  # what stays rounded
        k, v = self._whole(layer)
        self.keys[layer], self.values[layer] = k[:, :, start:length].clone(), v[:, :, start:length].clone()
        if layer < len(self._old):
            keys, values = self._old[layer]
            groups = start // self.group
            self._old[layer] = keys.map(lambda x: x[:, :, :groups]), values.map(lambda x: x[:, :, :start])

    def _rounded(self, layer: int) -> int:
        """Tokens of a layer that are quantized."""
        return self._old[layer][1].codes.shape[2] if layer < len(self._old) else 0

    def _quantize(self, layer: int, count: int) -> None:
        """Move the `count` oldest tokens out of the residual window."""
        k, v = self.keys[layer], self.values[layer]
        channels = math.gcd(self.group, v.shape[3])
        keys = quantize(k[:, :, :count].unflatten(2, (-1, self.group)), self.bits, dim=3)
        values = quantize(v[:, :, :count].unflatten(3, (-1, channels)), self.bits, dim=4)
        if layer == len(self._old):
            self._old.append((keys, values))
        else:
            old_keys, old_values = self._old[layer]
            self._old[layer] = _joined(old_keys, keys), _joined(old_values, values)
        self.keys[layer], self.values[layer] = k[:, :, count:].clone(), v[:, :, count:].clone()

    def _whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values (B, K, S, H) of a layer."""
        if not self._rounded(layer):
            return self.keys[layer], self.values[layer]
        keys, values = (dequantize(blocks, self.bits) for blocks in self._old[layer])
        return (
            torch.cat((keys.flatten(2, 3), self.keys[layer]), dim=2),
            torch.cat((values.flatten(3, 4), self.values[layer]), dim=2),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._map(change)
        self._old = [(keys.map(change), values.map(change)) for keys, values in self._old]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(k, v) of each layer as a pass would read them: (B, K, S, H)."""
        return (self._whole(layer) for layer in range(len(self.keys)))


def _joined(old: Blocks, new: Blocks) -> Blocks:
    return Blocks(
        torch.cat((old.codes, new.codes), dim=2),
        torch.cat((old.scale, new.scale), dim=2),
        torch.cat((old.low, new.low), dim=2),
    )
