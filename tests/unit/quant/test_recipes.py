"""Which weight takes which format: llama.cpp's choices, written out for whole models."""

import pytest

from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.kernels.blocks import FORMATS
from llamita.quant import recipes


def config(layers: int, *, heads: int = 8, key_value_heads: int = 2) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=256, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_value_heads
    )


def layers_in(recipe: str, part: str, form: str, layers: int) -> list[int]:
    """The layers in which a part of the model takes a format."""
    shape = (256, 512)
    names = [f"model.layers.{layer}.{part}" for layer in range(layers)]
    made = [recipes.choose(recipe, name, shape, config(layers)) for name in names]
    return [layer for layer, one in enumerate(made) if one == form]


# What `llama-quantize MODEL Q4_K_M` prints for Llamas of 16 and 32 layers.
@pytest.mark.parametrize("part", ["self_attn.v_proj", "mlp.down_proj"])
def test_q4_k_m_gives_more_bits_where_llama_cpp_does(part: str) -> None:
    assert layers_in("q4_k_m", part, "q6_k", 16) == [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_in("q4_k_m", part, "q6_k", 32) == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_in("q5_k_m", part, "q6_k", 16) == [0, 1, 4, 7, 10, 13, 14, 15]


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj"])
def test_q4_k_m_leaves_the_rest_alone(part: str) -> None:
    assert layers_in("q4_k_m", part, "q4_k", 16) == list(range(16))


def test_q4_k_s_gives_five_bits_at_the_beginning() -> None:
    assert layers_in("q4_k_s", "self_attn.v_proj", "q5_k", 32) == [0, 1, 2, 3]
    assert layers_in("q4_k_s", "mlp.down_proj", "q5_k", 16) == [0, 1]
    assert layers_in("q4_k_s", "mlp.down_proj", "q4_k", 16) == list(range(2, 16))


def test_iq4_nl_gives_five_bits_to_the_first_outputs_and_to_few_values() -> None:
    assert layers_in("iq4_nl", "self_attn.v_proj", "q5_k", 16) == list(range(16))
    assert layers_in("iq4_nl", "mlp.down_proj", "q5_k", 16) == [0, 1]
    assert layers_in("iq4_nl", "mlp.down_proj", "iq4_nl", 16) == list(range(2, 16))
    name = "model.layers.3.self_attn.v_proj"
    assert recipes.choose("iq4_nl", name, (256, 512), config(16, key_value_heads=4)) == "iq4_nl"
    assert recipes.choose("iq4_nl", name, (256, 320), config(16)) == "q8_0"  # 320 are no blocks of 256


def test_70b_gives_its_values_five_bits() -> None:
    big = config(80, heads=8, key_value_heads=1)
    name = "model.layers.{}.self_attn.v_proj"
    assert recipes.choose("q4_k_m", name.format(11), (256, 512), big) == "q5_k"
    assert recipes.choose("q4_k_m", name.format(0), (256, 512), big) == "q6_k"
    assert recipes.choose("q4_k_m", name.format(11), (256, 512), config(80, key_value_heads=8)) == "q4_k"


@pytest.mark.parametrize(
    ("recipe", "head", "embedding"),
    [
        ("q8_0", "q8_0", "q8_0"),
        ("q6_k", "q6_k", "q6_k"),
        ("q5_k_s", "q6_k", "q5_k"),
        ("q4_k_m", "q6_k", "q4_k"),
        ("q4_0", "q6_k", "q4_0"),
        ("q4_1", "q6_k", "q4_1"),
        ("int8", "int8", "int8"),
    ],
)
def test_the_head_takes_six_bits(recipe: str, head: str, embedding: str) -> None:
    shape, small = (999, 256), config(2)
    assert recipes.choose(recipe, "lm_head", shape, small, is_head=True) == head
    assert recipes.choose(recipe, "model.embed_tokens", shape, small, is_head=True) == head  # tied
    assert recipes.choose(recipe, "model.embed_tokens", shape, small) == embedding


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_a_recipe_by_its_name(form: str) -> None:
    assert recipes.choose(form, "model.layers.11.mlp.up_proj", (999, 256), config(24)) == form
    assert recipes.choose(form, "lm_head", (999, 256), config(24), is_head=True) == (
        "q8_0" if form == "q8_0" else "q6_k"
    )


def test_rows_that_do_not_fit_take_q8_0_or_stay() -> None:
    name, small = "model.layers.0.mlp.up_proj", config(2)
    assert recipes.choose("q4_k_m", name, (7, 288), small) == "q8_0"
    assert recipes.choose("q4_0", name, (7, 288), small) == "q4_0"
    assert recipes.choose("q4_k_m", name, (7, 280), small) is None
    assert recipes.choose("int8", name, (7, 280), small) == "int8"


def test_a_mapping_is_a_recipe() -> None:
    own, small = {"*.down_proj": "q6_k", "layers.1.*": "q4_0"}, config(2)
    assert recipes.choose(own, "model.layers.1.mlp.down_proj", (7, 256), small) == "q6_k"
    assert recipes.choose(own, "model.layers.1.mlp.up_proj", (7, 256), small) == "q4_0"
    assert recipes.choose(own, "model.layers.0.mlp.up_proj", (7, 256), small) is None


def test_names_are_read_in_any_case_and_by_llama_cpps_synonyms() -> None:
    assert recipes.rules("Q4_K") is recipes.rules("q4_k_m")
    assert recipes.rules("Q8_0") is recipes.rules("q8_0")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'q4k' .* did you mean q4_k\? use one of q8_0, "):
        recipes.rules("q4k")
    with pytest.raises(UsageError, match="no format 'q4_k_m'"):
        recipes.rules({"*": "q4_k_m"})
