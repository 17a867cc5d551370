"""What other libraries ask of a model, against what transformers' model answers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llamita
from llamita import LlamaForCausalLM
from llamita.bridge.transformers import twin
from llamita.errors import UnsupportedError, UsageError
from tests.small import CONFIG

IDS = torch.randint(0, 256, (3, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours = LlamaForCausalLM(CONFIG).eval()
    return ours, twin(ours)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("buffers", [False, True])
def test_memory_footprint(tied: bool, buffers: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied)).to(dtype)
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_sizes(tied))).to(dtype)
        rotary = 0 if not buffers else peer.get_memory_footprint() - peer.get_memory_footprint(return_buffers=False)
        own = 0 if not buffers else sum(x.nbytes for x in model.buffers())
        assert model.get_memory_footprint(return_buffers=buffers) - own == peer.get_memory_footprint(buffers) - rotary


def _sizes(tied: bool) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
             "num_hidden_layers", "pad_token_id")  # fmt: skip
    return {name: getattr(CONFIG, name) for name in names} | {"tie_word_embeddings": tied}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 0},
        {"do_sample": False, "eos_token_id": 101, "min_new_tokens": 1},
        {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "eos_token_id": list(range(40))},
    ],
)
def test_transition_scores(models: tuple[Any, Any], options: dict[str, Any], normalize: bool) -> None:
    ours, theirs = models
    seen = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True, **options}
    torch.manual_seed(2)
    out = ours.generate(IDS, **seen)
    beams = out.beam_indices if "num_beams" in options else None
    expected = theirs.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=normalize)
    scores = ours.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=normalize)
    assert torch.equal(scores, expected)
    assert scores.shape == (len(out.sequences), scores.shape[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_mask": torch.ones(3, 5), "use_cache": True, "labels": IDS},
        {"next_sequence_length": 2, "position_ids": torch.arange(5)[None].expand(3, -1)},
        {"inputs_embeds": torch.ones(3, 5, 64), "is_first_iteration": True, "next_sequence_length": 4},
        {"inputs_embeds": torch.ones(3, 5, 64), "is_first_iteration": False},
    ],
)
def test_inputs_of_a_pass(models: tuple[Any, Any], options: dict[str, Any]) -> None:
    mine, theirs = (model.prepare_inputs_for_generation(IDS, **copy.copy(options)) for model in models)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value is theirs[name] or torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name
    assert models[0](**mine).logits.shape[-1] == 260


def test_inputs_that_another_library_makes_are_not_left_out_in_silence() -> None:
    model = LlamaForCausalLM(CONFIG)
    own = model.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = lambda *_, **__: {}  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match=r"^generate makes its own inputs.*: call forward, or use LoRA$"):
        model.generate(IDS, max_new_tokens=1)
    model.prepare_inputs_for_generation = own  # type: ignore[method-assign]
    assert model.generate(IDS, max_new_tokens=1).shape == (3, 6)


def test_a_call_of_generate_as_transformers_signature_has_it(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    config = transformers.GenerationConfig(max_new_tokens=3, num_beams=2, low_memory=False)
    assert torch.equal(ours.generate(IDS, config), theirs.generate(IDS, config))
    batch = {"inputs": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
    assert torch.equal(ours.generate(**batch, max_new_tokens=3), theirs.generate(**batch, max_new_tokens=3))
    with pytest.raises(UsageError, match=r"^inputs and input_ids are two names of one argument: give one of them$"):
        ours.generate(IDS, inputs=IDS)


def test_a_parameter_or_buffer_by_its_name(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    for name in ("model.norm.weight", "lm_head.weight", "model.rotary_emb.inv_freq"):
        assert torch.equal(ours.get_parameter_or_buffer(name), theirs.get_parameter_or_buffer(name))
    assert ours.get_parameter_or_buffer("model.norm.weight") is ours.model.norm.weight
    for name in ("model.norm", "model.norm.bias", "nothing.weight", "dtype"):
        for model in models:
            with pytest.raises(AttributeError):
                model.get_parameter_or_buffer(name)


def test_facts(models: tuple[Any, Any], small_path: Path) -> None:
    ours, theirs = models
    for name in (
        "main_input_name", "loss_type", "supports_gradient_checkpointing",
        "input_modalities", "output_modalities", "is_parallelizable", "is_activation_checkpointing", "name_or_path",
    ):  # fmt: skip
        if hasattr(theirs, name):
            assert getattr(ours, name) == getattr(theirs, name), name
    for kind in ("LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering"):
        assert getattr(llamita, kind)(CONFIG).loss_type == getattr(transformers, kind)(theirs.config).loss_type
    assert ours.get_decoder() is ours.model
    assert (ours.config_class, type(theirs).config_class.__name__) == (type(ours.config), ours.config_class.__name__)
    assert LlamaForCausalLM.from_pretrained(small_path).name_or_path == str(small_path)
    ours.add_model_tags("a")
    ours.add_model_tags(["a", "b"])
    assert ours.model_tags == ["a", "b"]


def test_another_decoder_and_first_values() -> None:
    model, decoder = LlamaForCausalLM(CONFIG), llamita.LlamaModel(CONFIG)
    weight = decoder.embed_tokens.weight.clone()
    model.set_decoder(decoder)
    assert model.get_decoder() is model.model is decoder
    with pytest.raises(UsageError, match=r"^a LlamaModel has no head, .*: use the new one$"):
        decoder.set_decoder(decoder)
    decoder.layers[0].mlp.up_proj = torch.nn.Linear(3, 5)  # of zeros and torch's own first values
    model.init_weights()
    assert not decoder.layers[0].mlp.up_proj.bias.any()
    assert torch.equal(decoder.embed_tokens.weight, weight)  # filled before, as is all of a model that was loaded


def test_recompute_under_its_newer_name() -> None:
    model = LlamaForCausalLM(CONFIG)
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
    assert model.is_activation_checkpointing
    assert model.is_gradient_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    with pytest.raises(
        UnsupportedError, match=r"^recompute keeps what it saves on the model's device: leave offload out$"
    ):
        model.activation_checkpointing_enable(offload=True)
