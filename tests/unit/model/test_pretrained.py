"""What users of a pretrained model rely on: first values, facts, embeddings of another size."""

import pytest
import torch
from torch import nn

from llamita import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, PreTrainedModel
from llamita.errors import UnsupportedError, UsageError

V, D, PAD = 61, 24, 5
CONFIG = LlamaConfig(
    vocab_size=V, hidden_size=D, intermediate_size=200, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, attention_bias=True, mlp_bias=True, pad_token_id=PAD, initializer_range=0.05,
)  # fmt: skip


def test_first_values() -> None:
    model = LlamaForCausalLM(CONFIG)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight") and "norm" not in name}
    for name, parameter in weights.items():
        values = parameter[torch.arange(len(parameter)) != PAD] if "embed" in name else parameter
        assert abs(values.mean().item()) < 0.01, name
        assert values.std().item() == pytest.approx(0.05, rel=0.15), name
    assert (model.model.embed_tokens.weight[PAD] == 0).all()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        if "norm" in name:
            assert (parameter == 1).all(), name


def test_the_same_seed_gives_the_same_model() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(9)
        models.append(LlamaForCausalLM(CONFIG))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_facts() -> None:
    model = LlamaForCausalLM(CONFIG)
    assert (model.main_input_name, model.base_model_prefix) == ("input_ids", "model")
    assert model._no_split_modules == ["LlamaDecoderLayer"]
    assert model._tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert model.can_generate()
    assert not LlamaModel.can_generate()
    assert not LlamaForSequenceClassification.can_generate()
    assert model.base_model is model.model
    assert model.model.base_model is model.model
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.model.get_output_embeddings() is None
    assert isinstance(model, PreTrainedModel)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_once(tied: bool) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied))
    every = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == every
    assert model.num_parameters(exclude_embeddings=True) == every - V * D
    model.model.embed_tokens.weight.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == every - V * D
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_embeddings_and_head_can_be_replaced() -> None:
    model = LlamaForCausalLM(CONFIG)
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    assert model.model.embed_tokens is embedding
    assert model.lm_head is head


def test_a_config_of_another_library_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^LlamaForCausalLM got a builtins\.dict as its config: pass llamita\.Llama"):
        LlamaForCausalLM({"vocab_size": 3})  # type: ignore[arg-type]


def test_backends_are_chosen_for_the_whole_model() -> None:
    model = LlamaForCausalLM(CONFIG)
    model.set_attn_implementation("flex_attention")
    assert model.config.attn_implementation == model.model.config.attn_implementation == "flex"
    with pytest.raises(UnsupportedError, match=r"^attn_implementation 'foo' is not supported: use one of eager, sdpa"):
        model.set_attn_implementation("foo")


def test_from_config_takes_dtype_and_choices() -> None:
    model = LlamaForCausalLM._from_config(CONFIG.replace(dtype="bfloat16"), attn_implementation="eager")
    assert (model.dtype, model.config.attn_implementation) == (torch.bfloat16, "eager")
    assert LlamaForCausalLM._from_config(CONFIG, dtype="float16").dtype == torch.float16
    assert LlamaForCausalLM._from_config(CONFIG, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("size", "multiple", "expected"), [(70, None, 70), (40, None, 40), (61, 64, 64), (None, 32, 64)]
)
def test_resizing(size: int | None, multiple: int | None, expected: int, tied: bool) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied)).eval()
    old, old_head = model.model.embed_tokens.weight.clone(), model.lm_head.weight.clone()
    assert model.resize_token_embeddings(size, pad_to_multiple_of=multiple) is model.model.embed_tokens
    kept = min(V, expected)
    for weight, before in ((model.model.embed_tokens.weight, old), (model.lm_head.weight, old_head)):
        assert weight.shape == (expected, D)
        assert torch.equal(weight[:kept], before[:kept])
        if expected > V:  # new rows start near the mean of the old, so that they are no likelier than an average one
            near = before.mean(0).expand(expected - V, D)
            torch.testing.assert_close(weight[V:], near, atol=1e-4, rtol=0)
            assert not torch.equal(weight[V:], near)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.vocab_size == model.model.config.vocab_size == model.vocab_size == expected
    assert model.lm_head.out_features == model.model.embed_tokens.num_embeddings == expected
    assert model(torch.tensor([[1, kept - 1]])).logits.shape == (1, 2, expected)


def test_resizing_keeps_padding_gradients_and_dtype() -> None:
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    model.lm_head.weight.requires_grad_(False)
    embedding = model.resize_token_embeddings(80, mean_resizing=False)
    assert (embedding.padding_idx, embedding.weight.dtype) == (PAD, torch.bfloat16)
    assert embedding.weight.requires_grad
    assert not model.lm_head.weight.requires_grad
    assert embedding.weight[V:].float().std().item() == pytest.approx(0.05, rel=0.2)
    same = model.resize_token_embeddings(80)
    assert same is embedding


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"new_num_tokens": 4}, r"^pad_token_id is 5, outside the vocabulary of 4 tokens$"),
        ({"new_num_tokens": 0}, r"^new_num_tokens is 0: a vocabulary needs at least 1 token$"),
        ({"pad_to_multiple_of": 1.5}, r"^Asking to pad the embedding matrix to a multiple of `1.5`, which is not and"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict, sentence: str) -> None:
    model = LlamaForCausalLM(CONFIG)
    with pytest.raises(UsageError, match=sentence):
        model.resize_token_embeddings(**arguments)
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (V, D)
