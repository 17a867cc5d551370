"""Every number of the model equals transformers', bit for bit, over the grid of small models.

Every three values of it meet in a case here; `llamita verify` runs all of it.
"""

from itertools import combinations

import pytest
import torch

from llamita import verify
from llamita.bridge import transformers as peers
from tests.covering import covering

CASES = [verify.Case(**values) for values in covering(map(vars, verify.grid()), 3)]


@pytest.mark.parametrize("rope", verify.ROPES)
def test_grid(rope: str) -> None:
    different = {}
    for case in CASES:
        if case.rope == rope and max((found := verify.difference(case)).values()) > 0:
            different[str(case)] = found
    assert not different


def test_every_three_values_meet_in_a_case() -> None:
    axes = {name: {getattr(case, name) for case in verify.grid()} for name in vars(verify.Case())}
    for one, two, three in combinations(axes, 3):
        met = {(getattr(case, one), getattr(case, two), getattr(case, three)) for case in CASES}
        assert len(met) == len(axes[one]) * len(axes[two]) * len(axes[three])
    assert len(CASES) * 10 < len([*verify.grid()])


@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("backend", verify.BACKENDS)
def test_two_threads_and_other_seeds(backend: str, seed: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for cached in (False, True):
            case = verify.Case(backend=backend, seed=seed, padding="left", cached=cached, bias=True)
            assert max(verify.difference(case).values()) == 0
    finally:
        torch.set_num_threads(threads)


def test_a_wrong_weight_is_found_and_its_module_named(tmp_path) -> None:
    model = verify.random_model(verify.Case())
    model.save_pretrained(tmp_path)
    assert all(row.difference == 0 and row.first is None for row in verify.compare(tmp_path))
    theirs = peers.load(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        theirs.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-4
    tokens, mask = verify.Case().inputs()
    row = verify.compared(model, theirs, tokens, mask, dtype="float32", backend="sdpa", run="whole")
    assert row.first == "model.layers.1.mlp.up_proj"
    assert row.difference > 0 and row.first_difference > 0


def test_a_difference_is_a_difference() -> None:
    one = torch.tensor([1.0, float("nan")])
    assert verify.largest(one, one.clone()) == 0
    assert verify.largest(one, torch.tensor([1.0, 2.0])) == float("inf")
    assert verify.largest(one, torch.tensor([1.5, float("nan")])) == 0.5
    assert verify.largest(one, one[:1]) == float("inf")
    assert verify.largest(one, one.double()) == float("inf")
