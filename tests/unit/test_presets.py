"""Released sizes: their exact numbers of parameters."""

import pytest
import torch

from llamita import PRESETS, LlamaConfig, LlamaForCausalLM

EXACT = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-7b-python": 6_738_415_616,
    "codellama-7b": 6_738_546_688,
    "codellama-34b": 33_743_970_304,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm-135m": 134_515_008,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def parameters(config: LlamaConfig) -> int:
    """The parameters of a model: as many layers as it has, each with as many as another, and the rest."""
    with torch.device("meta"):
        one, two = (LlamaForCausalLM(config.replace(num_hidden_layers=count)).num_parameters() for count in (1, 2))
    return one + (config.num_hidden_layers - 1) * (two - one)


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_as_released(name: str) -> None:
    assert parameters(PRESETS[name]) == EXACT[name]


def test_facts_that_no_count_shows() -> None:
    assert PRESETS["openllama-3b"].head_dim == 100
    assert PRESETS["llama-3.1-8b"].rope_parameters["factor"] == 8.0
    assert PRESETS["llama-3.2-1b"].rope_parameters["factor"] == 32.0
    assert PRESETS["llama-3.2-1b"].tie_word_embeddings
    assert PRESETS["codellama-34b"].rope_parameters["rope_theta"] == 1e6
    assert PRESETS["llama-2-7b"].max_position_embeddings == 4096
