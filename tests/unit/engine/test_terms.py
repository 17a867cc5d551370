"""What the terms of a request may be: a thread that serves all requests compares them."""

from typing import Any

import numpy as np
import pytest

from llamita.engine.terms import Terms
from llamita.errors import UsageError


@pytest.mark.parametrize(
    "given",
    [
        {"priority": "high"}, {"priority": None}, {"priority": 1.5}, {"priority": True}, {"cache_salt": b"x"},
        {"cache_salt": None}, {"timeout": "5"}, {"timeout": float("nan")}, {"queue_timeout": [1]},
    ],
)  # fmt: skip
def test_r13_terms_of_another_kind_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} is .*: it must be a"):
        Terms(**given)


def test_terms() -> None:
    Terms(priority=-5, cache_salt="a", timeout=0, queue_timeout=float("inf"))
    of_numpy: Any = {"priority": np.int64(3), "timeout": np.float32(1.5)}
    Terms(**of_numpy)
