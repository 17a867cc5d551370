"""Whatever numbers settings and weights have, tokens of the vocabulary are written, or one sentence says why not."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.config import LlamaConfig
from llamita.errors import LlamitaError, NotFiniteError, UsageError
from llamita.generation.runner import finite
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.finite import multinomial
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import LogitsProcessorList, draw, pick

VOCABULARY, HUGE = 97, 10**400
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"do_sample": True, "num_return_sequences": 2},
    "seeded": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 2},
    "drawn beams": {"num_beams": 2, "do_sample": True, "seed": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "drawn lookup": {"prompt_lookup_num_tokens": 3, "do_sample": True},
    "assisted": {"assistant": True, "do_sample": True},
    "seeded and assisted": {"assistant": True, "do_sample": True, "seed": [1]},
    "tree": {"assistant": True, "draft_tree": (2, 1)},
}
EXTREMES: list[dict[str, Any]] = [
    *({"temperature": t} for t in (1e-38, 1e-45, 5e-324, 1e308, 1e39, HUGE)),
    *({name: p} for name in ("repetition_penalty", "encoder_repetition_penalty") for p in (1e39, 5e-324, HUGE)),
    *({name: p} for name in ("presence_penalty", "frequency_penalty") for p in (1e39, -1e39, HUGE)),
    {"presence_penalty": 1e39, "frequency_penalty": -1e39, "repetition_penalty": 1e39, "temperature": 1e-30},
    *({"logit_bias": {5: b}} for b in (math.inf, -math.inf, 1e39, HUGE)),
    *({"sequence_bias": {(5,): b, (6,): -b}} for b in (math.inf, 1e39)),
    {"dry_multiplier": 1e39, "dry_base": 1e39, "dry_allowed_length": HUGE, "dry_range": HUGE},
    {"mirostat": 2, "mirostat_tau": 1e39, "mirostat_eta": 1e39},
    {"guidance_scale": 1e39, "temperature": 0.5},
    {"watermarking_config": {"bias": 1e39}},
    {"exponential_decay_length_penalty": (0, 1e39), "eos_token_id": 7, "temperature": 0.1},
    {"length_penalty": 1e39}, {"length_penalty": -1e39}, {"max_time": 1e39},
    *({name: HUGE} for name in ("top_k", "min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size")),
    *({name: HUGE} for name in ("num_beams", "num_return_sequences", "prefill_chunk_size", "num_assistant_tokens")),
    *({name: HUGE} for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size", "eos_token_id", "seed")),
    *({name: HUGE} for name in ("forced_eos_token_id", "forced_bos_token_id", "pad_token_id", "min_new_tokens")),
    {"suppress_tokens": [HUGE]}, {"begin_suppress_tokens": [HUGE]}, {"bad_words_ids": [[HUGE]]}, {"seed": -(2**70)},
    {"draft_tree": (HUGE,)}, {"assistant_early_exit": HUGE}, {"max_new_tokens": HUGE, "max_time": 0.0},
    {"max_new_tokens": HUGE, "cache_implementation": "static"}, {"max_length": HUGE, "max_time": 0.0},
    {"min_p": 5e-324, "top_p": 5e-324, "typical_p": 5e-324, "epsilon_cutoff": 5e-324, "eta_cutoff": 5e-324},
    {"top_h": 5e-324}, {"xtc_probability": 1.0, "xtc_threshold": 0.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config.replace(initializer_range=0.3, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    return LlamaForCausalLM(config).eval()


def written(model: LlamaForCausalLM, **flags: Any) -> Tensor:
    if flags.pop("assistant", False):
        flags["assistant_model"] = model
    ids = torch.tensor([[3, 9, 3, 9, 3]])
    return model.generate(ids, **{"max_new_tokens": 6, "max_time": 30.0, **flags})[:, 5:]


@pytest.mark.parametrize("way", WAYS)
def test_extreme_numbers_write_tokens_or_say_why(model: LlamaForCausalLM, way: str) -> None:
    for extreme in EXTREMES:
        flags = {**WAYS[way], **extreme}
        if "seed" in extreme or ("num_return_sequences" in extreme and "beams" in way):
            flags["do_sample"] = True
        try:
            tokens = written(model, **flags)
        except LlamitaError as error:
            assert len(str(error)) < 2000
            continue
        assert tokens.numel(), extreme
        if "pad_token_id" not in extreme:
            assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCABULARY, extreme


def test_the_limits_are_what_they_tend_to(model: LlamaForCausalLM) -> None:
    greedy = written(model).tolist()
    for seed in (None, 1):
        for cold in (1e-38, 1e-45, 5e-324):
            assert written(model, do_sample=True, temperature=cold, seed=seed).tolist() == greedy
        for bias in (math.inf, 1e39, 1e30):
            flags = {"do_sample": True, "temperature": 0.1, "seed": seed}
            assert written(model, logit_bias={5: bias}, **flags).tolist() == [[5] * 6]
    logits = torch.randn(2, VOCABULARY)
    cold = LogitsProcessorList(SamplingParams(do_sample=True, temperature=[1e-45, 1.0]), rows=2)(
        logits, History.begin(logits.long())
    )
    assert cold[0].softmax(-1).max() == 1.0 and torch.equal(cold[1], logits[1])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", WAYS)
def test_damaged_weights_are_named(tiny_config: LlamaConfig, way: str, number: float) -> None:
    model = LlamaForCausalLM(tiny_config.replace(eos_token_id=None, pad_token_id=0)).eval()
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY - 1, 5] = number
    with pytest.raises(NotFiniteError, match=r"not finite: its weights are damaged, .* in float32"):
        written(model, **WAYS[way])
    tokens = written(model, remove_invalid_values=True) if way == "greedy" else torch.zeros(1)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCABULARY


def test_a_damaged_draft_is_named(model: LlamaForCausalLM, tiny_config: LlamaConfig) -> None:
    draft = LlamaForCausalLM(tiny_config.replace(num_hidden_layers=1)).eval()
    torch.nn.init.constant_(draft.model.norm.weight, math.nan)
    for flags in ({}, {"do_sample": True}, {"do_sample": True, "seed": 1}, {"draft_tree": (2, 1)}):
        with pytest.raises(NotFiniteError):
            written(model, assistant_model=draft, **flags)
    with pytest.raises(NotFiniteError):
        written(draft, guidance_scale=2.0)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_processor_that_leaves_nothing(model: LlamaForCausalLM, seed: int | None, beams: int) -> None:
    def never(ids: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -math.inf)

    def nan(ids: Tensor, logits: Tensor) -> Tensor:
        return logits * math.nan

    for processor in (never, nan):
        for filters in (
            {},
            {"top_p": 0.9},
            {"top_k": 0},
            {"top_k": 3, "top_p": 0.9},
            {"min_p": 0.1},
            {"typical_p": 0.5},
        ):
            flags: dict[str, Any] = {"do_sample": True, "seed": seed, "num_beams": beams, **filters}
            with pytest.raises(UsageError, match="no token to draw"):
                written(model, logits_processor=[processor], **flags)


def test_a_draw_stays_in_the_vocabulary() -> None:
    generator = torch.Generator().manual_seed(1)
    for numbers in ([math.nan, 1.0], [0.0, 0.0], [math.inf, 1.0]):
        probabilities = torch.tensor(numbers)
        with pytest.raises(UsageError, match="no token to draw"):
            pick(probabilities, generator)
        with pytest.raises(UsageError, match="no token to draw"):
            multinomial(probabilities[None])
    for _ in range(200):
        assert int(pick(torch.tensor([0.0, 1e-45, 0.0]), generator)) == 1
    with pytest.raises(UsageError, match="no token"):
        draw(torch.full((1, 4), -math.inf), [generator])


def test_half_precision_that_overflows_is_no_number() -> None:
    large, huge = torch.full((2, 300), 6e4, dtype=torch.float16), torch.full((2, 300), 3e38)
    assert finite(large) is large  # whose sums are beyond the dtype
    assert finite(huge) is huge
    with pytest.raises(NotFiniteError, match="too large for their dtype"):
        finite(large * 2)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": [1.0]}, "temperature lists 1 numbers for 2 rows"),
    ({"min_length": []}, "min_length lists 0 numbers"),
    ({"top_k": ""}, "top_k is ''"),
    ({"logit_bias": 3}, "logit_bias is 3: give a dictionary"),
    ({"logit_bias": {"a": 1}}, "logit_bias is {'a': 1}: give a dictionary"),
    ({"sequence_bias": 1}, "sequence_bias is 1: give a list of pairs"),
    ({"sequence_bias": [[5, 6]]}, "sequence_bias is"),
    ({"bad_words_ids": [5]}, "bad_words_ids is"),
    ({"suppress_tokens": "5"}, "suppress_tokens is '5': give a token id"),
    ({"eos_token_id": 1.5}, "eos_token_id is 1.5: give a token id"),
    ({"forced_bos_token_id": torch.tensor(5.5)}, "forced_bos_token_id is 5.5"),
    ({"do_sample": torch.tensor([1, 2])}, "do_sample is [1, 2]: give True or False"),
    ({"watermarking_config": 5}, "watermarking_config is 5"),
    ({"watermarking_config": {"seed": 5}}, "watermarking_config has no 'seed'"),
    ({"prefix_allowed_tokens_fn": [5]}, "prefix_allowed_tokens_fn is"),
    ({"logits_processor": len}, "logits_processor is <built-in"),
    ({"stopping_criteria": [5]}, "stopping_criteria is"),
    ({"generation_config": {5: 1}}, "generation_config is {5: 1}"),
    ({"generation_config": 5}, "generation_config is 5"),
]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(("flags", "says"), WRONG, ids=lambda given: str(given)[:40])
def test_what_is_no_setting_is_said(model: LlamaForCausalLM, flags: dict[str, Any], says: str, beams: int) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        model.generate(torch.ones(2, 3, dtype=torch.long), max_new_tokens=2, num_beams=beams, **flags)
