"""Attention in training by our kernels: sdpa's results, in fp32 to the bit, and the reference's gradients."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from llamita.attention import Backend, eager, sdpa, trained
from llamita.attention.mask import Mask
from llamita.kernels.cpu.runtime.program import Kernel
from llamita.kernels.reference import attention_gradients

CPU = torch.device("cpu")
SCALE = 0.21
# kernel, dtype, what is rounding, whether the machine is said to have bf16 dot products
KINDS = {
    "fp32": (trained.FP32, torch.float32, 2e-6, True),
    "bf16": (trained.BF16, torch.bfloat16, 1e-2, False),
    "pairs": (trained.PAIRS, torch.bfloat16, 1e-2, True),
}


@dataclass(frozen=True)
class Shape:
    """Rows, tokens, query heads, key/value heads, columns of a head; lengths of documents; a window."""

    rows: int
    tokens: int
    heads: int
    shared: int
    width: int
    documents: tuple[int, ...] = ()
    window: int | None = None

    def mask(self) -> Mask:
        """Who sees whom; the second row's documents lie in the other order."""
        documents = None
        if self.documents:
            own = [torch.tensor(x) for x in (self.documents, self.documents[::-1])][: self.rows]
            numbers = torch.stack([torch.arange(len(x)).repeat_interleave(x) for x in own])
            documents = (numbers, numbers)
        return Mask(self.tokens, self.tokens, device=CPU, documents=documents, window=self.window)

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the gradient of the result, all (B, T, heads, H)."""
        generator = torch.Generator().manual_seed(1)
        heads = (self.heads, self.shared, self.shared, self.heads)
        q, k, v, d_out = (
            torch.randn(self.rows, self.tokens, many, self.width, generator=generator).to(dtype) for many in heads
        )
        return q, k, v, d_out


SHAPES = (
    Shape(2, 70, 4, 2, 64),
    Shape(1, 3, 2, 2, 32),
    Shape(1, 72, 3, 1, 96, window=21),
    Shape(2, 131, 2, 1, 32, documents=(7, 60, 1, 63)),
    Shape(1, 90, 2, 2, 128, documents=(64, 26), window=33),
)


def attended(attend: Backend, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The result, and the gradients of q, k and v."""
    *inputs, d_out = shape.inputs(dtype)
    leaves = [x.requires_grad_() for x in inputs]
    out = attend(*(x.transpose(1, 2) for x in leaves), shape.mask(), scale=SCALE)
    out.backward(d_out)
    return out.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def expected(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """The reference's gradients in fp64, of inputs that have been rounded to the dtype."""
    inputs, starts = [x.double() for x in shape.inputs(dtype)], trained.first_keys(shape.mask(), shape.rows)
    q, k, v, d_out = inputs
    rows = [
        attention_gradients(*one, starts=own, scale=SCALE) for *one, own in zip(q, k, v, d_out, starts, strict=True)
    ]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_equals_torchs_gradients_of_plain_attention(shape: Shape) -> None:
    _, gradients = attended(eager.attend, shape, torch.float64)
    wanted = expected(shape, torch.float64)
    assert max(distance(one, own) for one, own in zip(gradients, wanted, strict=True)) < 1e-6  # eager softens in fp32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kernel_equals_the_reference(monkeypatch: pytest.MonkeyPatch, shape: Shape, kind: str) -> None:
    kernel, dtype, close, has_pairs = KINDS[kind]
    monkeypatch.setattr(trained, "has_pairs", lambda: has_pairs)
    used: list[Kernel] = []
    run = trained.run
    monkeypatch.setattr(trained, "run", lambda one, *args, chunks: used.append(one) or run(one, *args, chunks=chunks))
    out, gradients = attended(trained.attend, shape, dtype)
    assert used == ([trained.WHOLE, kernel] if kind == "pairs" else [kernel])
    if kind == "pairs":
        assert distance(out, attended(eager.attend, shape, torch.float64)[0]) < close
    else:
        assert torch.equal(out, attended(sdpa.attend, shape, dtype)[0])
    assert [one.dtype for one in gradients] == [dtype] * 3
    assert max(distance(one, own) for one, own in zip(gradients, expected(shape, dtype), strict=True)) < close


def test_gradients_do_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(attended(trained.attend, SHAPES[3], torch.bfloat16)[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_nothing_flows_from_one_document_to_another() -> None:
    shape = Shape(1, 80, 2, 2, 32, documents=(37, 43))
    q, k, v, d_out = shape.inputs(torch.float32)
    d_out[:, :37] = 0  # the second document alone is learned
    q, k, v = leaves = [x.transpose(1, 2).requires_grad_() for x in (q, k, v)]
    trained.attend(q, k, v, shape.mask(), scale=SCALE).backward(d_out)
    for leaf in leaves:
        assert leaf.grad is not None
        assert not leaf.grad[:, :, :37].any() and leaf.grad[:, :, 37:].any()


@pytest.mark.parametrize("odd", ["padding", "a mask of the user's", "a head of 24", "fp64", "no gradients"])
def test_what_the_kernel_does_not_know_is_left_to_sdpa(odd: str) -> None:
    shape = Shape(2, 9, 2, 1, 24 if odd == "a head of 24" else 32)
    mask = shape.mask()
    if odd == "padding":
        mask = Mask(9, 9, device=CPU, padding=torch.arange(9).expand(2, -1) >= torch.tensor([[2], [0]]))
    if odd == "a mask of the user's":
        mask = Mask(9, 9, device=CPU, given=torch.ones(2, 1, 9, 9).bool())
    found = []
    for attend in (trained.attend, sdpa.attend):
        *inputs, d_out = shape.inputs(torch.float64 if odd == "fp64" else torch.float32)
        leaves = [x.requires_grad_(odd != "no gradients") for x in inputs]
        out = attend(*(x.transpose(1, 2) for x in leaves), mask, scale=SCALE)
        assert "Attended" not in type(out.grad_fn).__name__
        found += [out]
        if odd != "no gradients":
            out.backward(d_out)
            found += [leaf.grad for leaf in leaves]
    half = len(found) // 2
    assert all(torch.equal(one, other) for one, other in zip(found[:half], found[half:], strict=True))
