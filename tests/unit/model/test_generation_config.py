"""How a model writes by default: a dictionary with attributes, from its file or else from its config."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch

from llamita import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from llamita.bridge import transformers as peers
from llamita.errors import NotFoundError, UnsupportedError, UsageError
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


METHODS = (
    "to_dict", "to_diff_dict", "to_json_string", "to_json_file", "save_pretrained", "from_pretrained", "from_dict",
    "from_model_config", "update", "validate", "get_generation_mode",
)  # fmt: skip


def test_the_methods_of_transformers_object_are_there_and_do_its_work(tmp_path: Path) -> None:
    given = {"temperature": 0.6, "do_sample": True, "eos_token_id": [7, 8], "top_k": None}
    ours, theirs = GenerationConfig(given), peers.library().GenerationConfig(**given)
    assert all(callable(getattr(ours, name)) and hasattr(theirs, name) for name in METHODS)
    assert ours.to_diff_dict() == {k: v for k, v in theirs.to_diff_dict().items() if k != "transformers_version"}
    assert ours.to_json_string(ignore_metadata=True) == theirs.to_json_string(ignore_metadata=True)
    assert json.loads(ours.to_json_string(use_diff=False)) == given
    assert "temperature" not in json.loads(ours.to_json_string(keys_to_pop=["temperature"]))
    assert ours.update(temperature=0.7) == theirs.update(temperature=0.7) == {}
    assert ours.update({"top_p": 0.5}, top_p=0.4) == {}
    assert (ours.temperature, ours.top_p, ours.validate()) == (0.7, 0.4, None)
    ours.save_pretrained(tmp_path / "new")
    assert type(GenerationConfig.from_pretrained(tmp_path / "new")) is GenerationConfig
    assert GenerationConfig.from_pretrained(tmp_path / "new", top_p=1.0).to_dict() == ours.to_diff_dict() | {
        "top_p": 1.0
    }
    assert peers.library().GenerationConfig.from_pretrained(tmp_path / "new").top_p == 0.4
    assert GenerationConfig.from_model_config(CONFIG) == GenerationConfig.of(CONFIG)
    with pytest.raises(NotFoundError):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="uploads nothing"):
        ours.save_pretrained(tmp_path, push_to_hub=True)


@pytest.mark.parametrize(
    "flags",
    [
        {}, {"do_sample": True}, {"num_beams": 2}, {"num_beams": 2, "do_sample": True}, {"num_beams": 1},
        {"prompt_lookup_num_tokens": 2}, {"assistant_early_exit": 1},
    ],
)  # fmt: skip
def test_the_way_of_writing_has_transformers_word(flags: dict[str, int]) -> None:
    theirs = peers.library().GenerationConfig(**flags)
    assert GenerationConfig(flags).get_generation_mode() == theirs.get_generation_mode().value
    guessed = theirs.get_generation_mode(object()).value if "num_beams" not in flags else "assisted_generation"
    assert GenerationConfig(flags).get_generation_mode(object()) == guessed


def test_transformers_object_may_be_assigned() -> None:
    model = LlamaForCausalLM(CONFIG)
    model.generation_config = peers.library().GenerationConfig(max_new_tokens=3, eos_token_id=5)
    assert model.generation_config == {"max_new_tokens": 3, "eos_token_id": 5}
    assert model.generate(torch.ones(1, 2, dtype=torch.long)).shape[1] <= 5
    model.generation_config = None
    assert model.generation_config == {}
    with pytest.raises(UsageError, match="generation_config is 5: give a dictionary"):
        model.generation_config = 5
