"""Pipeline parallelism, alone and with the other dims of the mesh, equals one process."""

import sys

import pytest

from tests.distributed.stage_cases import ADAPTERS, CASES
from tests.distributed.test_distributed import launched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes with gloo")


@pytest.mark.early
def test_stages_and_combinations_equal_one_process() -> None:
    """Steps in fp64, twenty of 1f1b and interleaved: tied weights, accumulation, clipping, packing, masks."""
    found = launched("stage_cases", *CASES)
    resumed, adapter = found.pop("resumed"), found.pop("adapter resumed")
    assert found.keys() == {*CASES, *ADAPTERS, "untied"}
    for name, one in found.items():
        assert one["steps"] <= 1e-12, (name, one)
        assert one["weights"] <= 1e-12, (name, one)
        assert one["same"], f"every process of {name} knows the same losses and norms"
        assert one["all"], f"the processes of {name} have all weights"
    assert found["three stages"]["share"] < 0.55  # two layers of four, and the embedding
    assert found["interleaved"]["share"] < 0.55
    assert found["untied"]["share"] < 0.7
    assert found["cp x dp_shard"]["kept"] < 0.27, "FSDP2 shards over both, and keeps no copies"
    assert found["dp_shard x cp x tp"]["kept"] < 0.15

    # Four stages on two processes, one process, four stages on two pairs: each takes over the tensors that were saved.
    assert resumed["taken over"] == [True, True]
    assert resumed["apart"] <= 1e-12
    assert adapter["taken over"] == [True]  # two stages, and one process
    assert adapter["apart"] <= 1e-12
