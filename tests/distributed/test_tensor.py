"""Tensor parallelism on two processes equals one process."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch
from tests.distributed.tensor_cases import VARIANTS

CASES = "tests.distributed.tensor_cases"


@pytest.mark.parametrize(
    ("count", "steps", "names", "share"),
    [
        (2, 20, ["plain"], 0.56),
        (2, 5, ["tied, with biases", "adapters", "adapted blocks"], 0.56),
        (4, 3, ["plain"], 0.3),
    ],
)
def test_steps_equal_those_of_one_process(
    count: int, steps: int, names: list[str], share: float, tmp_path: Path
) -> None:
    """Two processes shard each matrix; of four, two pairs share the rows by FSDP2."""
    for found in launch(f"{CASES}:training", count, tmp_path, str(steps), *names):
        for name in names:
            assert found[name]["steps"] <= 1e-12, found
            assert found[name]["weights"] <= 1e-12, found
            assert found[name]["tied"] == VARIANTS[name]["tie_word_embeddings"]
            assert found[name]["kept"] < share
