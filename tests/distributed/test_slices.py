"""Processes that share a model each read their own part of it, and have what they would have of the whole one."""

import sys

import pytest

from tests.distributed.slice_cases import DEGREES, METHODS
from tests.distributed.test_distributed import launched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes with gloo, and asks Linux for memory")


@pytest.mark.early
def test_each_process_reads_its_part() -> None:
    found = launched("slice_cases")
    for name in DEGREES:
        for answer in found.pop(name):
            assert answer == {"weights": True, "losses": True}  # every bit

    for name in ("dp_shard 2", "tp 2", "pp 2"):
        assert found.pop(f"blocks, {name}") == [True, True]

    for name in METHODS:
        answer = {"is unread": True, "weights": True, "trained": True, "base": True}
        assert found.pop(f"adapted, {name}") == [answer, answer]

    # A bf16 file, read as fp32: whole it takes twice its size. The vocabulary is odd, and norms are small.
    whole = found.pop("read, whole")
    plain = found.pop("read, plain")  # which takes trial steps besides
    lora = found.pop("read, lora")
    assert all(0.49 < one["read"] < 0.52 for one in (*plain, *lora)), (plain, lora)
    assert found.keys() == {"read, dp_shard 2", "read, tp 2", "read, pp 2", "read, written"}
    for ranks in found.values():
        for one, all_of_it in zip(ranks, whole, strict=True):
            assert 0.49 < one["read"] < 0.52
            assert one["own"] < 1.2
            assert all_of_it["peak"] - one["peak"] > 0.6
