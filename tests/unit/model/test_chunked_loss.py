"""The chunked loss equals the plain one, in value and gradients, and never holds all logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llamita.errors import UsageError
from llamita.kernels.cpu import training as kernels
from llamita.model.chunked_loss import chunked_cross_entropy, is_plain
from llamita.model.loss import IGNORED
from llamita.quant.linear import QuantizedLinear
from llamita.quant.surgery import quantize_weight

N, D, V = 23, 12, 57
Head = Callable[[], nn.Module]


def plain_head() -> nn.Module:
    return nn.Linear(D, V, bias=False)


def other_head() -> nn.Module:
    """A head that is no plain matrix, as one with an adapter is."""
    return nn.Sequential(nn.Linear(D, 5), nn.Linear(5, V))


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    targets = torch.randint(0, V, (N,))
    targets[[2, 11]] = IGNORED
    return torch.randn(N, D, dtype=dtype), targets


def found(rows: Tensor, head: nn.Module, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The loss, and its gradients to rows and weights."""
    rows = rows.clone().requires_grad_()
    head.zero_grad()
    value = loss(rows)
    (3.7 * value).backward()
    return [value.detach(), *(w.grad.clone() for w in (rows, *head.parameters()) if w.grad is not None)]


def plain(head: nn.Module, targets: Tensor, items: float) -> Callable[[Tensor], Tensor]:
    def loss(rows: Tensor) -> Tensor:
        logits = head(rows)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum") / items

    return loss


@pytest.mark.parametrize("head_of", [plain_head, other_head])
@pytest.mark.parametrize("chunk", [1, 7, 23, 50])
def test_equals_the_plain_loss_in_fp64(chunk: int, head_of: Head) -> None:
    rows, targets = data(torch.float64)
    head = head_of().double()
    assert is_plain(head) == (head_of is plain_head)
    for items in (None, 9):
        ours = found(rows, head, lambda x: chunked_cross_entropy(x, head, targets, chunk=chunk, num_items=items))  # noqa: B023
        theirs = found(rows, head, plain(head, targets, items or N - 2))
        assert len(ours) == len(theirs) > 2
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == torch.float64
            assert float((one - other).abs().max()) < 1e-12


@pytest.mark.parametrize(("dtype", "autocast", "close"), [
    (torch.float32, False, 1e-6), (torch.float32, True, 1e-2), (torch.bfloat16, False, 2e-2),
])  # fmt: skip
def test_is_near_in_other_dtypes(dtype: torch.dtype, autocast: bool, close: float) -> None:
    """bf16 rounds gradients of a chunk, not of all: one unit in its last place is 2^-8."""
    rows, targets = data(dtype)
    head = plain_head().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        ours = found(rows, head, lambda x: chunked_cross_entropy(x, head, targets, chunk=6))
        theirs = found(rows, head, plain(head, targets, N - 2))
    assert [one.dtype for one in ours] == [one.dtype for one in theirs] == [torch.float32, dtype, dtype]
    assert abs(float(ours[0] - theirs[0])) < 1e-5
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        assert float((one - other).norm() / other.norm()) < close


def with_squares(head: nn.Module, targets: Tensor, z_loss: float) -> Callable[[Tensor], Tensor]:
    """The plain loss with the squares of log Z."""

    def loss(rows: Tensor) -> Tensor:
        squares = head(rows).double().logsumexp(-1)[targets != IGNORED].square()
        return plain(head, targets, 1.0)(rows) + z_loss * squares.sum()

    return loss


@pytest.mark.parametrize("head_of", [plain_head, other_head])
def test_z_loss_adds_the_squares_of_log_z(head_of: Head) -> None:
    rows, targets = data(torch.float64)
    head = head_of().double()
    ours = found(rows, head, lambda x: chunked_cross_entropy(x, head, targets, chunk=7, num_items=1, z_loss=0.03))
    theirs = found(rows, head, with_squares(head, targets, 0.03))
    assert all(float((one - other).abs().max()) < 1e-12 for one, other in zip(ours, theirs, strict=True))


def test_z_loss_by_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_products", lambda: True)
    head, targets = nn.Linear(64, 96, bias=False), torch.randint(0, 96, (N,))
    targets[3] = IGNORED
    rows = 3 * torch.randn(N, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = found(rows, head, lambda x: chunked_cross_entropy(x, head, targets, chunk=7, num_items=1, z_loss=0.03))
    theirs = found(rows, head, with_squares(head, targets, 0.03))
    assert all(float((one - other).norm() / other.norm()) < 1e-2 for one, other in zip(ours, theirs, strict=True))


def test_a_frozen_head_and_frozen_rows_get_no_gradient() -> None:
    rows, targets = data(torch.float32)
    head = plain_head().requires_grad_(False)
    whole = found(rows, head, plain(head, targets, 1.0))
    ours = found(rows, head, lambda x: chunked_cross_entropy(x, head, targets, chunk=5, num_items=1))
    assert len(ours) == 2
    assert torch.allclose(ours[1], whole[1], atol=1e-6)
    head.requires_grad_(True)
    chunked_cross_entropy(rows, head, targets, chunk=5).backward()
    assert head.get_parameter("weight").grad is not None
    with torch.no_grad():
        assert not chunked_cross_entropy(rows, head, targets, chunk=5).requires_grad


def test_a_second_backward_pass_is_refused() -> None:
    rows, targets = data(torch.float32)
    loss = chunked_cross_entropy(rows.requires_grad_(), plain_head(), targets, chunk=5)
    loss.backward(retain_graph=True)
    with pytest.raises(UsageError, match=r"^the chunked loss has one backward pass: compute the loss again"):
        loss.backward()


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            tuple(one.shape) for one in (out if isinstance(out, tuple) else (out,)) if isinstance(one, Tensor)
        }
        return out


@pytest.mark.parametrize("autocast", [False, True])
def test_no_tensor_has_a_row_of_logits_for_every_token(autocast: bool) -> None:
    rows, targets = data(torch.float32)
    head, watch = plain_head(), Shapes()
    with watch, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        chunked_cross_entropy(rows.requires_grad_(), head, targets, chunk=4).backward()
    assert (4, V) in watch.seen and (N, D) in watch.seen and (V, D) in watch.seen
    assert {size for shape in watch.seen if V in shape for size in shape} == {N % 4, 4, D, V}
    assert not [shape for shape in watch.seen if torch.Size(shape).numel() >= N * V]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_quantized_head_computes_its_logits_once(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    """Its own products, and the gradient of rows by its weights."""
    torch.manual_seed(0)
    head = QuantizedLinear(quantize_weight("q8_0", torch.randn(70, 64)))
    rows, targets = torch.randn(11, 64, requires_grad=True), torch.randint(0, 70, (11,))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        wanted = F.cross_entropy(head(rows).float(), targets)
    (expected,) = torch.autograd.grad(wanted, rows)
    calls: list[int] = []
    linear = head.matrix.linear
    monkeypatch.setattr(head.matrix, "linear", lambda x: calls.append(len(x)) or linear(x))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = chunked_cross_entropy(rows, head, targets, chunk=4)
    (found,) = torch.autograd.grad(loss, rows)
    assert calls == [4, 4, 3]
    assert torch.allclose(loss, wanted, rtol=1e-5)
    assert torch.allclose(found, expected, rtol=0, atol=2e-3 if autocast else 1e-6)
