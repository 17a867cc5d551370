"""Schedules as functions of the step."""

from itertools import pairwise

import pytest

from llamita.train.schedule import SCHEDULES, share


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_then_never_rises_again(name: str) -> None:
    shares = [share(name, step, steps=100, warmup=0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert shares[10] == 1
    assert all(later <= earlier for earlier, later in pairwise(shares[10:]))
    assert shares[-1] == 1 if name == "constant" else 0 < shares[-1] < 0.05


def test_values_in_the_middle() -> None:
    at = {name: share(name, 50, steps=100, warmup=0.0) for name in SCHEDULES}
    assert at == pytest.approx({"cosine": 0.5, "linear": 0.5, "constant": 1.0, "wsd": 0.5 / 0.6})
    assert share("wsd", 39, steps=100, warmup=0.0) == 1
