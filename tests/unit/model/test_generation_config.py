"""How a model writes by default: a dictionary with attributes, from its file or else from its config."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from llamita import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from llamita.bridge import transformers as peers
from llamita.model.generation_config import GenerationConfig

SIZES = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 3}
CONFIG = LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, eos_token_id=7, pad_token_id=0)


def test_names_are_attributes() -> None:
    config = GenerationConfig(temperature=0.6)
    config.num_assistant_tokens = 5
    assert config == {"temperature": 0.6, "num_assistant_tokens": 5} and config.temperature == 0.6
    assert config.top_p is None and "top_p" not in config
    del config.temperature, config.top_k
    assert config.to_dict() == {"num_assistant_tokens": 5} and type(config.to_dict()) is dict
    with pytest.raises(AttributeError, match="has no attribute '__deepcopy__'"):
        config.__deepcopy__  # noqa: B018


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_its_equals(again) -> None:
    config = GenerationConfig(eos_token_id=[7, 8], temperature=0.6)
    other = again(config)
    assert type(other) is GenerationConfig and other == config and json.dumps(other) == json.dumps(config)
    other.temperature = 1.0
    assert config.temperature == 0.6


def test_unset_fields_read_as_transformers_do() -> None:
    theirs = peers.library().GenerationConfig()
    names = [name for name in theirs.to_dict() if not name.startswith("_") and name != "transformers_version"]
    assert len(names) > 30
    assert [getattr(GenerationConfig(), name) for name in names] == [getattr(theirs, name) for name in names]


def test_without_a_file_it_is_of_the_config_and_keeps_the_ends_when_something_is_set(tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIG)
    model.generation_config.num_assistant_tokens = 5
    expected = {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0, "num_assistant_tokens": 5}
    assert model.generation_config == expected and copy.deepcopy(model).generation_config == expected
    model.save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path).generation_config == expected
    (tmp_path / "generation_config.json").unlink()
    again = LlamaForCausalLM.from_pretrained(tmp_path).generation_config
    assert type(again) is GenerationConfig and again == {name: expected[name] for name in expected if "_id" in name}
    assert LlamaForSequenceClassification(CONFIG).generation_config == {}


@pytest.mark.parametrize("given", [{}, {"eos_token_id": 7, "max_new_tokens": 3}])
def test_a_plain_dictionary_will_do(given: dict[str, int]) -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    model.generation_config = given
    assert model.generation_config == given and model.generation_config.max_new_tokens == given.get("max_new_tokens")
    draft, ids = copy.deepcopy(model), torch.tensor([[1, 2, 3]])
    draft.generation_config.num_assistant_tokens = 2
    plain = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False, assistant_model=draft), plain)
