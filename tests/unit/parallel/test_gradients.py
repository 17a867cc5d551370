"""Adding gradients in a tree, whose shape the number of micro-batches decides; ranks: see tests/distributed."""

import pytest
import torch
from torch import Tensor, nn

from llamita.errors import UsageError
from llamita.parallel.gradients import Gradients, TreeGradients, check_tree
from llamita.parallel.ranks import DataRanks
from tests.unit.parallel.test_ranks import rank


def added(weights: list[nn.Parameter], leaves: list[list[Tensor]], kind: type[Gradients]) -> list[Tensor]:
    """The sum of gradients, one leaf after another."""
    gradients = kind(weights)
    for leaf in leaves:
        for weight, gradient in zip(weights, leaf, strict=True):
            weight.grad = gradient.clone() if weight.grad is None else weight.grad + gradient
        gradients.add()
    gradients.finish()
    return [weight.grad for weight in weights if weight.grad is not None]


def plain_tree(leaves: list[Tensor]) -> Tensor:
    """Pairs of neighbours, then pairs of pairs; what is left over joins at the end."""
    whole = 1 << (len(leaves).bit_length() - 1)
    if whole == len(leaves) > 1:
        whole //= 2
    return leaves[0] if len(leaves) == 1 else plain_tree(leaves[:whole]) + plain_tree(leaves[whole:])


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8])
def test_the_sum_is_the_tree_s(count: int) -> None:
    weights = [nn.Parameter(torch.zeros(3, 5)), nn.Parameter(torch.zeros(7))]
    leaves = [[torch.randn(3, 5), torch.randn(7)] for _ in range(count)]
    found = added(weights, leaves, TreeGradients)
    for number, total in enumerate(found):
        assert torch.equal(total, plain_tree([leaf[number] for leaf in leaves]))


def test_ranks_that_add_their_turns_meet_in_the_same_tree() -> None:
    """What TreeReduceScatter makes of the leaves of a turn, in one process."""
    weight = [nn.Parameter(torch.zeros(67))]
    leaves = [[torch.randn(67)] for _ in range(12)]
    (alone,) = added(weight, leaves, TreeGradients)
    for size in (2, 4):
        weight[0].grad = None
        turns = [[plain_tree([leaf for (leaf,) in leaves[n : n + size]])] for n in range(0, 12, size)]
        assert torch.equal(added(weight, turns, TreeGradients)[0], alone)
    weight[0].grad = None
    assert not torch.equal(added(weight, leaves, Gradients)[0], alone)


def test_a_weight_without_gradients_has_none() -> None:
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    gradients = TreeGradients([used, unused])
    for turn in range(3):
        used.grad = torch.full((2,), float(turn))
        gradients.add()
    gradients.finish()
    assert used.grad is not None
    assert used.grad.tolist() == [3.0, 3.0]
    assert unused.grad is None


@pytest.mark.parametrize("kind", [Gradients, TreeGradients])
@pytest.mark.parametrize("most", [0.5, 100.0])
def test_gradients_are_clipped_as_torch_does(kind: type[Gradients], most: float) -> None:
    weights = [nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(9))]
    given = [torch.randn(4, 6), torch.randn(9)]
    found = added(weights, [given], kind)
    gradients = kind(weights)
    norm = gradients.clip(most)
    expected = torch.cat([one.flatten() for one in given])
    assert norm == pytest.approx(float(expected.norm()), rel=1e-6)
    scale = min(1.0, most / (norm + 1e-6))
    assert torch.allclose(torch.cat([one.flatten() for one in found]), expected * scale, rtol=1e-6)


def test_what_is_no_tree_is_refused() -> None:
    check_tree(rank(0, 4), rows=16, micro_rows=2)
    check_tree(DataRanks(), rows=6, micro_rows=2)
    with pytest.raises(UsageError, match="needs a power of two of processes, and there are 3"):
        check_tree(rank(0, 3), rows=12, micro_rows=2)
    with pytest.raises(UsageError, match=r"8 rows a step are no multiple of 2 processes x 8 rows: .* divisor of 4"):
        check_tree(rank(0, 2), rows=8, micro_rows=8)
