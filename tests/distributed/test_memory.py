"""What --dry-run says of one process of several is what it then takes."""

import sys

import pytest

from tests.distributed.memory_cases import CASES
from tests.distributed.test_distributed import launched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes with gloo")


@pytest.mark.early
def test_the_memory_of_a_process_is_known_before_it_is_started() -> None:
    """Shards, parts of matrices with their sequence, and stages with several micro-batches in them."""
    found = launched("memory_cases")
    assert {name: len(shares) for name, shares in found.items()} == {name: len(one[1]) for name, one in CASES.items()}
    assert all(0.95 < share < 1.05 for shares in found.values() for share in shares), found
