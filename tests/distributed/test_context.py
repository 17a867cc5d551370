"""Context parallelism on two processes equals one process."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize(("window", "steps"), [("0", "20"), ("5", "3")])
def test_steps_equal_those_of_one_process(window: str, steps: str, tmp_path: Path) -> None:
    """Packed documents that end in either part, a part without anything to learn, and a sliding window."""
    for found in launch("tests.distributed.context_cases:training", 2, tmp_path, "1", window, steps):
        assert found["steps"] <= 1e-12, found
        assert found["weights"] <= 1e-12, found
