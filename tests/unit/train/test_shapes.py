"""Models from random weights."""

from pathlib import Path

import pytest
import torch

from llamita.errors import UsageError
from llamita.tokenizer.load import load_tokenizer
from llamita.train.shapes import new_model
from tests.small import BEGIN, END


def test_a_new_model_speaks_the_tokenizer_s_ids_and_is_its_seed_s(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    state = torch.get_rng_state()
    model = new_model("pico", tokenizer, length=32, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    config = model.config
    assert (config.vocab_size, config.max_position_embeddings, config.bos_token_id) == (260, 32, BEGIN)
    assert END in config.eos_token_ids
    again = new_model("pico", tokenizer, length=32, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    layer = model.model.layers[0]
    assert layer.mlp.down_proj.weight.std() < 0.6 * layer.mlp.up_proj.weight.std()


def test_an_unknown_shape_is_refused(small_path: Path) -> None:
    with pytest.raises(UsageError, match="shape is 'huge': use one of pico, nano"):
        new_model("huge", load_tokenizer(small_path), length=32, seed=0)
