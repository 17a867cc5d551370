"""Attention of a few new tokens over a cache, held to reference.attend."""

import pytest
import torch
from torch import Tensor

from llamita.kernels import reference
from llamita.kernels.cpu import decode_attention
from tests.unit.kernels.cpu.launch import DTYPES, launch

KERNELS = dict(
    zip(DTYPES, (decode_attention.attend_fp32, decode_attention.attend_bf16, decode_attention.attend_fp16), strict=True)
)
FAR = 1 << 40


class Case:
    """B rows of T new tokens behind `slot` others; heads N over K, each H wide."""

    def __init__(
        self,
        batch: int = 2,
        tokens: int = 1,
        heads: int = 6,
        keyed: int = 2,
        width: int = 48,
        slot: int = 21,
        capacity: int = 40,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.sizes = (batch, tokens, heads, keyed, width)
        self.q = torch.randn(batch, tokens, heads, width)
        self.k, self.v = torch.randn(2, batch, tokens, keyed, width)
        positions = torch.randint(0, 99, (batch, tokens))
        self.angles = reference.angles(positions, 100 ** -(torch.arange(width // 2) / width), 1.0)
        rooms = torch.full((2, batch, keyed, capacity, width), torch.nan)  # what nobody wrote, nobody may read
        rooms[:, :, :, :slot] = torch.randn(2, batch, keyed, slot, width)
        self.room = tuple(rooms.to(dtype))
        self.slot, self.dtype = slot, dtype

    def expected(self, first: list[int] | None = None, window: int = FAR) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reference's result and what it leaves in the cache."""
        room = (self.room[0].clone(), self.room[1].clone())
        out = reference.attend(
            self.q, self.k, self.v, angles=self.angles, room=room, slot=self.slot, window=window, scale=0.3,
            first=torch.tensor(first or [0] * self.sizes[0]),
        )  # fmt: skip
        return out, room

    def seen(
        self, first: list[int] | None = None, window: int = FAR, threads: int = 1
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The kernel's."""
        batch, tokens, heads, keyed, width = self.sizes
        room = (self.room[0].clone(), self.room[1].clone())
        capacity = room[0].shape[2]
        sizes = torch.tensor([tokens, keyed, heads // keyed, width, capacity, window, 0])
        sizes[6:].view(torch.float32)[0] = 0.3
        slots, out = torch.tensor([self.slot, *(first or [0] * batch)]), torch.empty(self.q.shape)
        scores = torch.full((batch, heads, capacity), torch.nan)
        launch(
            KERNELS[self.dtype], self.q, self.k, self.v, *self.angles, *room, slots, out, scores, sizes,
            chunks=batch * keyed, threads=threads,
        )  # fmt: skip
        return out, room

    def check(self, first: list[int] | None = None, window: int = FAR) -> None:
        """The kernel equals the reference, in what it gives and in what it stores."""
        (out, room), (expected, expected_room) = self.seen(first, window), self.expected(first, window)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5 if self.dtype == torch.float32 else 2e-3)
        step = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[self.dtype]  # keys may round either way
        torch.testing.assert_close(room[0], expected_room[0], rtol=step, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(room[1], expected_room[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 128])
def test_widths_and_dtypes(dtype: torch.dtype, width: int) -> None:
    Case(width=width, dtype=dtype).check()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("slot", [0, 1, 15, 16, 17, 32])
def test_lengths(tokens: int, slot: int) -> None:
    Case(tokens=tokens, slot=slot, width=16).check()


@pytest.mark.parametrize(("heads", "keyed"), [(1, 1), (4, 4), (6, 2), (5, 1), (12, 3)])
def test_groups(heads: int, keyed: int) -> None:
    Case(heads=heads, keyed=keyed, width=32, tokens=2).check()


@pytest.mark.parametrize("window", [1, 2, 7, 16, 21, 22, 100])
@pytest.mark.parametrize("tokens", [1, 3])
def test_windows(window: int, tokens: int) -> None:
    Case(tokens=tokens, width=16).check(window=window)


@pytest.mark.parametrize("first", [[0, 5, 20], [21, 1, 16], [3, 3, 17]])
@pytest.mark.parametrize("window", [4, FAR])
def test_left_padding(first: list[int], window: int) -> None:
    Case(batch=3, tokens=2, width=16).check(first, window)


def test_a_new_token_that_is_padding_itself_stays_finite() -> None:
    """Rows of very different lengths, read in parts: the first new tokens of the short one are not to be seen."""
    Case(batch=2, tokens=4, width=16).check([0, 23])


def test_scores_far_apart() -> None:
    """A head that looks at one slot only, and one whose scores would overflow without the largest taken off."""
    case = Case(width=16, heads=2, keyed=1)
    case.q *= 1000
    (out, _), (expected, _) = case.seen(), case.expected()
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_threads_change_nothing() -> None:
    case = Case(batch=3, tokens=3, width=32)
    alone = case.seen()
    for threads in (2, 3):
        out, room = case.seen(threads=threads)
        assert torch.equal(out, alone[0])
        assert torch.equal(room[0].nan_to_num(), alone[1][0].nan_to_num())
