"""Rotary positions: both arithmetics, and frequencies that survive every move."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita import LlamaConfig, LlamaForCausalLM, LlamaRotaryEmbedding
from llamita.config import ROPE_REQUIRED
from llamita.model.rope import AT_LENGTH, FREQUENCIES, frequencies

B, T, N, H = 2, 300, 3, 8
CONFIG = LlamaConfig(
    vocab_size=31, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=N,
    max_position_embeddings=512,
)  # fmt: skip


def meta_rotation(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Meta's reference: pairs side by side, turned as complex numbers in fp32."""
    angles = positions[:, None].float() * (1.0 / theta ** (torch.arange(0, H, 2).float() / H))
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None]  # (1, T, 1, H/2)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def halves(x: Tensor) -> Tensor:
    """From Meta's order of a head's numbers to Hugging Face's: pair i at (i, i + H/2)."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_meta_numerics_are_metas_complex_product(dtype: torch.dtype) -> None:
    x, positions = torch.randn(B, T, N, H).to(dtype), torch.arange(T)
    expected = halves(meta_rotation(x, positions, 1e4))
    ours = LlamaRotaryEmbedding(CONFIG.replace(numerics="meta"))(positions[None], dtype)(halves(x))
    theirs = LlamaRotaryEmbedding(CONFIG)(positions[None], dtype)(halves(x))
    assert ours.dtype == dtype
    if dtype == torch.float32:  # a complex product may fuse its multiplications
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
        return
    assert (ours != expected).float().mean() < 1e-3
    assert (theirs != expected).float().mean() > 0.1  # the other arithmetic rounds elsewhere
    torch.testing.assert_close(theirs, expected, atol=6e-2, rtol=0)


def test_numerics_is_a_choice_of_the_whole_model() -> None:
    model = LlamaForCausalLM(CONFIG.replace(initializer_range=0.5)).eval().to(torch.bfloat16)
    other = LlamaForCausalLM(model.config.replace(numerics="meta")).eval().to(torch.bfloat16)
    other.load_state_dict(model.state_dict())
    ids = torch.randint(0, 31, (1, 50))
    assert not torch.equal(model(ids).logits, other(ids).logits)
    torch.testing.assert_close(model(ids).logits, other(ids).logits, atol=0.5, rtol=0.1)


def test_frequencies_stay_fp32_whatever_the_model_becomes() -> None:
    model = LlamaForCausalLM(CONFIG)
    expected = frequencies(CONFIG)[0]
    for moved in (model.to(torch.bfloat16), model.half(), model.double(), model.to("meta").to_empty(device="cpu")):
        assert moved.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(moved.model.rotary_emb.inv_freq, expected)
    assert not any("inv_freq" in name for name in model.state_dict())


def test_positions_beyond_256_do_not_collapse_in_bf16() -> None:
    rotation = LlamaRotaryEmbedding(CONFIG)(torch.arange(400)[None], torch.bfloat16)
    assert torch.equal(rotation.cos.float(), torch.cos(_angles(400))[None, :, None].bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LlamaRotaryEmbedding(CONFIG)(torch.arange(400)[None], torch.bfloat16).cos, rotation.cos)


def _angles(length: int) -> Tensor:
    angles = torch.arange(length)[:, None].float() * frequencies(CONFIG)[0]
    return torch.cat((angles, angles), dim=-1)


def test_the_tables_name_the_same_types() -> None:
    assert set(FREQUENCIES) == set(ROPE_REQUIRED)
    rest: dict[str, dict[str, Any]] = {name: dict.fromkeys(ROPE_REQUIRED[name], 2.0) for name in FREQUENCIES}
    rest["longrope"] = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rest["llama3"]["high_freq_factor"] = 4.0
    for name in FREQUENCIES:
        rope = CONFIG.replace(rope_parameters=None, rope_scaling={"rope_type": name, **rest[name]}).rope_parameters
        assert rope.depends_on_length == (name in AT_LENGTH)


LATER = {
    "dynamic": {"factor": 2.0},
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", LATER)
def test_frequencies_at_a_length_are_the_same_under_torch_s_every_default(kind: str) -> None:
    rotary = LlamaRotaryEmbedding(CONFIG.replace(rope_parameters={"rope_type": kind, **LATER[kind]}))
    positions = torch.tensor([[0, 5, 700]])
    wanted = rotary(positions, torch.float32).cos
    try:
        for dtype in (torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(rotary(positions, torch.float32).cos, wanted)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        assert torch.equal(rotary(positions, torch.float32).cos, wanted)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
