"""Where the tokens of a pass stand, and memory that its layers share."""

from functools import cached_property
from math import prod

import torch
from torch import Tensor

from llamita.kernels.cpu.runtime.program import Kernel, Program, named
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu.decode import bits, empty, numbers

ANGLES = named("elementwise", "angles")
SPARE = 9  # slots behind the last that a block of keys may reach into


class Place:
    """Where the new tokens stand, and room to work in: the same for all layers of a pass.

    What a layer leaves in a room lasts until the next writes there. New memory for each would cost more than some
    products: the system fills every page with zeros when it is first touched.
    """

    def __init__(
        self, model: LlamaForCausalLM, batch: int, tokens: int, slot: int, capacity: int, first: Tensor | None
    ) -> None:
        config, rope = model.config, model.model.rotary_emb
        width, self.queries, self.tokens = config.head_dim, config.num_attention_heads, tokens
        self.heads = batch * config.num_key_value_heads
        self.slots = (slot + tokens + SPARE) // 2 * 2
        self.seen = numbers(slot, *[0] * batch)
        positions = torch.arange(slot, slot + tokens, dtype=torch.int64, device="cpu").expand(batch, tokens)
        if first is not None:
            self.seen[1:] = first
            positions = (positions - first[:, None]).clamp(min=0)
        window, scale = config.sliding_window or 1 << 30, bits(config.softmax_scale)
        group = config.num_attention_heads // config.num_key_value_heads
        self.sizes = numbers(
            tokens, config.num_key_value_heads, group, width, capacity, window, scale, slot, self.slots
        )
        self._width = width
        self._rooms: dict[tuple[str, torch.dtype], Tensor] = {}
        self.cosines, self.sines = (empty(batch * tokens, width // 2) for _ in "cs")
        run(
            ANGLES, positions.contiguous(), rope.inv_freq, self.cosines, self.sines, width // 2,
            bits(rope.attention_factor), chunks=batch * tokens,
        )  # fmt: skip

    def room(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor of this name and dtype, of a size that it may be given anew."""
        room, size = self._rooms.get((name, dtype)), prod(shape)
        if room is None or room.numel() < size:
            room = self._rooms[name, dtype] = empty(size, dtype=dtype)
        return room[:size].view(shape)

    @cached_property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Room for a layer's keys and values in fp32."""
        shape = (self.heads, self.slots, self._width)
        return empty(*shape), empty(*shape)

    @cached_property
    def paired(self) -> Tensor:
        """Room for a layer's values in pairs of bf16."""
        return empty(self.heads, self.slots // 2, self._width, dtype=torch.int32)


def run(kernel: Kernel, *arguments: Tensor | int | None, chunks: int) -> None:
    """A program of one call."""
    program = Program()
    program.add(kernel, *arguments, chunks=chunks)
    program.run()
