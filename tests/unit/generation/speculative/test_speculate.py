"""Guessing ahead through `model.generate`: the flags, the distribution, the records."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse
from llamita.plans.cpu.forward import FusedForward

SMALL = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 1}
GUESSES: list[dict[str, Any]] = [
    {"assistant": True, "draft_tree": (3, 2, 1)},
    {"assistant": True, "draft_tree": (2,)},
    {"assistant_early_exit": 2, "draft_tree": (2, 2)},
    {"assistant": True, "num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0},
    {"assistant": True, "num_assistant_tokens": 4, "assistant_confidence_threshold": 0.3},
    {"assistant_early_exit": 1, "num_assistant_tokens": 3},
    {"prompt_lookup_num_tokens": 4},
]


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.2, eos_token_id=None, pad_token_id=0)).eval()


@pytest.fixture(scope="module")
def small(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(4)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.2, eos_token_id=None, **SMALL)).eval()


def prompts() -> dict[str, Tensor]:
    """Three texts of unequal length, one of which repeats itself."""
    ids = torch.randint(3, 97, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[2, :3] = 0
    ids[0, 3:] = ids[0, :4].clone()
    return {"input_ids": ids * mask, "attention_mask": mask}


def given(flags: dict[str, Any], assistant: LlamaForCausalLM) -> dict[str, Any]:
    """The flags, with the assistant in its place."""
    flags = dict(flags)
    return {**flags, "assistant_model": assistant} if flags.pop("assistant", False) else flags


@pytest.mark.parametrize("flags", GUESSES, ids=str)
def test_greedy_equals_plain_decoding(model: LlamaForCausalLM, small: LlamaForCausalLM, flags: dict[str, Any]) -> None:
    for more in ({}, {"repetition_penalty": 1.3, "eos_token_id": list(range(20, 30))}):
        settings: dict[str, Any] = {**prompts(), "max_new_tokens": 14, **more}
        plain = model.generate(**settings)
        assert model.generate(**settings, **given(flags, small)).tolist() == plain.tolist()


CHI_SQUARE_15 = 37.7  # exceeded once in a thousand by 15 degrees of freedom


@pytest.mark.parametrize("flags", GUESSES, ids=str)
def test_the_distribution_is_the_models_own(tiny_config: LlamaConfig, flags: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = tiny_config.replace(vocab_size=4, initializer_range=0.5, eos_token_id=None, pad_token_id=None, **SMALL)
    model, small = LlamaForCausalLM(config.replace(num_hidden_layers=2)).eval(), LlamaForCausalLM(config).eval()
    count, ids = 3000, torch.tensor([[1, 2, 0, 1, 2]])
    torch.manual_seed(11)
    settings: dict[str, Any] = {
        "max_new_tokens": 2,
        "do_sample": True,
        "temperature": 0.8,
        "num_return_sequences": count,
    }
    written = model.generate(ids, **settings, **given(flags, small))[:, 5:]
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # (16, 2)
    logits = model(torch.cat((ids.expand(16, -1), every), dim=1)).logits.detach()[:, 4:6] / 0.8
    expected = logits.log_softmax(-1).gather(-1, every[..., None])[..., 0].sum(-1).exp() * count
    counts = torch.bincount(written @ torch.tensor([4, 1]), minlength=16)
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_15


def test_a_tree_needs_a_model(model: LlamaForCausalLM) -> None:
    for flags in ({}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(UsageError, match="pass assistant_model or assistant_early_exit"):
            model.generate(**prompts(), draft_tree=(2, 1), **flags)


@pytest.mark.parametrize("flags", GUESSES, ids=str)
def test_scores_and_logits_are_those_of_plain_decoding(
    model: LlamaForCausalLM, small: LlamaForCausalLM, flags: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**prompts(), "max_new_tokens": 14, "eos_token_id": list(range(20, 30))}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for more in ({}, {"repetition_penalty": 1.3}):
        plain = model.generate(**settings, **more)
        out = model.generate(**settings, **more, **given(flags, small))
        assert out.sequences.tolist() == plain.sequences.tolist()
        is_over = torch.zeros(3, dtype=torch.bool)
        for step, token in enumerate(plain.sequences[:, 7:].T):
            for name in ("scores", "logits"):
                assert out[name][step].shape == (3, 97)
                expected = plain[name][step].masked_fill(is_over[:, None], 0.0)
                torch.testing.assert_close(out[name][step], expected, rtol=1e-4, atol=1e-4)
            is_over |= torch.isin(token, torch.arange(20, 30))
        assert len(out.scores) == len(out.logits) == len(plain.scores)
        if more:
            assert not torch.equal(out.scores[0], out.logits[0])
    out = model.generate(**settings | {"output_logits": False}, **given(flags, small))
    assert out.logits is None


def test_what_guessing_does_not_give_is_said(model: LlamaForCausalLM) -> None:
    for kind in ("static", "quantized"):
        with pytest.raises(UnsupportedError, match=f"a DynamicCache, not a .* a {kind.title()}Cache"):
            model.generate(**prompts(), prompt_lookup_num_tokens=2, cache_implementation=kind)
    plain = model.generate(**prompts())
    guessed = model.generate(**prompts(), prompt_lookup_num_tokens=2, cache_implementation="offloaded")
    assert guessed.tolist() == plain.tolist()
    with pytest.raises(UnsupportedError, match="no attentions or hidden states"):
        model.generate(**prompts(), prompt_lookup_num_tokens=2, return_dict_in_generate=True, output_hidden_states=True)


@pytest.mark.parametrize("drawn", [{}, {"do_sample": True, "top_k": 0, "seed": 5}], ids=str)
def test_a_draft_in_doubt_guesses_no_further(
    model: LlamaForCausalLM, small: LlamaForCausalLM, drawn: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**prompts(), "max_new_tokens": 20, "return_dict_in_generate": True, **drawn}

    def drafted(threshold: float) -> int:
        flags = {"assistant_model": small, "num_assistant_tokens": 4, "assistant_confidence_threshold": threshold}
        return model.generate(**settings, **flags).acceptance.drafted

    assert drafted(0.0) > drafted(0.08) > drafted(1.0) == 0


@pytest.mark.parametrize(
    "flags", [{"prompt_lookup_num_tokens": 3}, {"assistant": True, "num_assistant_tokens": 3}], ids=str
)
def test_passes_stay_with_the_kernels(small_path: Path, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = fuse(LlamaForCausalLM.from_pretrained(small_path))
    settings: dict[str, Any] = {**prompts(), "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
    settings["no_repeat_ngram_size"] = 3
    flags = {**given(flags, fuse(model.first_layers(1))), "assistant_confidence_threshold": 0.0}
    plain = model.generate(**settings)
    monkeypatch.setattr(FusedForward, "plain", None)  # what is not fused would fail
    out = model.generate(**settings, **flags, return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.tolist()
    assert 0 < out.acceptance.rate < 1  # so that rows grew unequally, and holes were closed
