"""Models from random weights."""

from pathlib import Path

import pytest
import torch

from llamita.errors import UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer
from llamita.train.shapes import config_of, first_weights
from tests.small import BEGIN, END


def test_a_new_model_speaks_the_tokenizer_s_ids_and_is_its_seed_s(small_path: Path) -> None:
    config = config_of("pico", load_tokenizer(small_path), length=32)
    model, again = (LlamaForCausalLM.without_weights(config) for _ in range(2))
    state = torch.get_rng_state()
    first_weights(model, seed=3, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert (config.vocab_size, config.max_position_embeddings, config.bos_token_id) == (260, 32, BEGIN)
    assert END in config.eos_token_ids
    first_weights(again, seed=3, device=torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    layer = model.model.layers[0]
    assert layer.mlp.down_proj.weight.std() < 0.6 * layer.mlp.up_proj.weight.std()


@pytest.mark.parametrize("is_tied", [True, False])
def test_first_weights_are_those_of_a_constructor(small_path: Path, is_tied: bool) -> None:
    """A seed keeps its meaning, though each weight is drawn when its part is kept."""
    config = config_of("pico", load_tokenizer(small_path), length=32).replace(tie_word_embeddings=is_tied)
    late = LlamaForCausalLM.without_weights(config)
    first_weights(late, seed=3, device=torch.device("cpu"))
    torch.manual_seed(3)
    built = LlamaForCausalLM(config)
    own = dict(late.named_parameters())
    assert own.keys() == dict(built.named_parameters()).keys()
    for name, weight in built.named_parameters():
        is_small = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert torch.equal(own[name], weight * (1 / 2 if is_small else 1))  # two layers


def test_first_weights_are_the_same_under_torch_s_every_default(small_path: Path) -> None:
    config = config_of("pico", load_tokenizer(small_path), length=32)
    first, again = (LlamaForCausalLM.without_weights(config) for _ in range(2))
    first_weights(first, seed=3, device=torch.device("cpu"))
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        first_weights(again, seed=3, device=torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert again.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_an_unknown_shape_is_refused(small_path: Path) -> None:
    with pytest.raises(UsageError, match="shape is 'huge': use one of pico, nano"):
        config_of("huge", load_tokenizer(small_path), length=32)
