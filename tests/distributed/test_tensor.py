"""Tensor parallelism on two processes equals one process."""

from typing import Any

import pytest

from tests.distributed.launch import launch
from tests.distributed.tensor_cases import VARIANTS

CASES = "tests.distributed.tensor_cases"


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return launch(f"{CASES}:training", 2, tmp_path_factory.mktemp("training"))


@pytest.mark.parametrize("name", VARIANTS)
def test_twenty_steps_equal_those_of_one_process(name: str, training: list[dict[str, Any]]) -> None:
    for found in training:
        assert found[name]["steps"] <= 1e-12, found
        assert found[name]["weights"] <= 1e-12, found
        assert found[name]["tied"] == VARIANTS[name]["tie_word_embeddings"]
        assert found[name]["kept"] < 0.56
