"""model.generate, token for token as transformers', under every flag that both have; and its other outputs."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita import QuantizedCache
from llamita.bridge import transformers as peers
from llamita.config import LlamaConfig
from llamita.errors import LlamitaError, UsageError
from llamita.model.llama import LlamaForCausalLM

FLAGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [7, 8], [11, 3]]},
    {"sequence_bias": [[[5], 9.0], [[6, 7], -4.0]]},
    {"suppress_tokens": [3, 4, 5, 60, 61]},
    {"begin_suppress_tokens": [9, 10, 40]},
    {"min_new_tokens": 6, "eos_token_id": list(range(20, 60))},
    {"min_length": 11, "eos_token_id": list(range(20, 60))},
    {"forced_eos_token_id": 17, "max_new_tokens": 5},
    {"exponential_decay_length_penalty": (2, 1.9), "eos_token_id": 17},
    {"remove_invalid_values": True},
    {"renormalize_logits": True},
    {"guidance_scale": 1.6},
    {"prefill_chunk_size": 3},
]
DRAWN: list[dict[str, Any]] = [
    {"min_p": 0.05},
    {"top_h": 0.7},
    {"typical_p": 0.6},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
]


@pytest.fixture(scope="module")
def pair(tiny_config: LlamaConfig) -> tuple[LlamaForCausalLM, Any]:
    torch.manual_seed(5)
    ours = LlamaForCausalLM(tiny_config.replace(initializer_range=0.3, eos_token_id=None, pad_token_id=0)).eval()
    return ours, peers.twin(ours)


def prompts(rows: int = 3, padding: Sequence[int] = (0, 2, 4)) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 97, (rows, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, missing in zip(range(rows), padding, strict=False):
        ids[row, :missing], mask[row, :missing] = 0, 0
    return ids, mask


def both(pair: tuple[LlamaForCausalLM, Any], *, padding: Sequence[int] = (), **flags: Any) -> tuple[Any, Any]:
    ids, mask = prompts(padding=padding)
    results = []
    for model in pair:
        torch.manual_seed(11)
        results.append(model.generate(ids, attention_mask=mask, pad_token_id=0, **{"max_new_tokens": 9, **flags}))
    return results[0], results[1]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags)))
@pytest.mark.parametrize("strategy", ["greedy", "sampling", "beams", "drawn beams"])
def test_flags(pair: tuple[LlamaForCausalLM, Any], flags: dict[str, Any], strategy: str) -> None:
    ways = {"greedy": {}, "sampling": {"do_sample": True}, "beams": {"num_beams": 3}}
    ways["drawn beams"] = {"num_beams": 3, "do_sample": True}
    if "guidance_scale" in flags and "beams" in strategy:  # transformers' negative texts do not follow their beams
        flags = {**flags, "max_new_tokens": 2}  # as yet they need not; beyond, see the test below
    ours, theirs = both(pair, **ways[strategy], **flags)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("flags", DRAWN, ids=lambda flags: next(iter(flags)))
@pytest.mark.parametrize("beams", [1, 2])
def test_drawing(pair: tuple[LlamaForCausalLM, Any], flags: dict[str, Any], beams: int) -> None:
    ours, theirs = both(pair, do_sample=True, num_beams=beams, padding=(0, 2, 4), **flags)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_several_texts_a_prompt(pair: tuple[LlamaForCausalLM, Any], beams: int) -> None:
    ours, theirs = both(pair, do_sample=True, num_return_sequences=3, num_beams=beams, padding=(0, 2, 4))
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("flags", [{"length_penalty": -1.5}, {"early_stopping": True}, {"early_stopping": "never"}])
def test_beam_flags(pair: tuple[LlamaForCausalLM, Any], flags: dict[str, Any]) -> None:
    ours, theirs = both(pair, num_beams=3, eos_token_id=list(range(20, 40)), padding=(0, 2, 4), **flags)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("way", [{}, {"do_sample": True}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_outputs(pair: tuple[LlamaForCausalLM, Any], way: dict[str, Any]) -> None:
    pair[1].set_attn_implementation("eager")
    pair[0].set_attn_implementation("eager")
    kept = ("scores", "logits", "attentions", "hidden_states")
    ours, theirs = both(pair, return_dict_in_generate=True, **{f"output_{name}": True for name in kept}, **way)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for name in ("attentions", "hidden_states"):
        for step, peer_step in zip(ours[name], theirs[name], strict=True):
            assert len(step) == len(peer_step)
            if "num_beams" not in way:  # transformers reads prompts once a beam, ours once
                for a, b in zip(step, peer_step, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    indices = ours.get("beam_indices")
    mine = pair[0].compute_transition_scores(ours.sequences, ours.scores, indices, normalize_logits=True)
    peer = pair[1].compute_transition_scores(
        theirs.sequences, theirs.scores, theirs.get("beam_indices"), normalize_logits=True
    )
    torch.testing.assert_close(mine, peer, rtol=1e-5, atol=1e-5)
    for model in pair:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("flags", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}], ids=str)
def test_guessing_ahead(pair: tuple[LlamaForCausalLM, Any], flags: dict[str, Any], tiny_config: LlamaConfig) -> None:
    ids = prompts()[0][:1]  # transformers guesses for one text only
    results = []
    small = LlamaForCausalLM(tiny_config.replace(num_hidden_layers=1, eos_token_id=None)).eval()
    for model, assistant in zip(pair, (small, peers.twin(small)), strict=True):
        given = {"assistant_model": assistant} if "assistant" in flags else flags
        results.append(model.generate(ids, max_new_tokens=12, pad_token_id=0, **given))
    assert results[0].tolist() == results[1].tolist()


def test_a_negative_prompt(pair: tuple[LlamaForCausalLM, Any]) -> None:
    negative = torch.randint(3, 97, (3, 4), generator=torch.Generator().manual_seed(2))
    ours, theirs = both(pair, guidance_scale=2.1, negative_prompt_ids=negative)
    assert ours.tolist() == theirs.tolist()


class Guided:
    """Guidance for transformers, whose negative texts are read anew at every step, so that each is its beam's own."""

    def __init__(self, model: LlamaForCausalLM, scale: float, negative: Tensor, prompt: int) -> None:
        self.model, self.scale, self.negative, self.prompt = model, scale, negative, prompt

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        times = len(ids) // len(self.negative)
        texts = torch.cat((self.negative.repeat_interleave(times, 0), ids[:, self.prompt :]), dim=1)
        with torch.no_grad():
            without = self.model(texts).logits[:, -1].log_softmax(-1)
        return self.scale * (scores.log_softmax(-1) - without) + without


@pytest.mark.parametrize("way", [{"num_beams": 3}, {"num_beams": 4, "do_sample": True}, {"num_return_sequences": 2}])
def test_a_negative_text_follows_its_beam(pair: tuple[LlamaForCausalLM, Any], way: dict[str, Any]) -> None:
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    ids = prompts(padding=())[0]
    way = {"do_sample": True, **way} if "num_return_sequences" in way else way
    for negative in (ids[:, -1:], torch.randint(3, 97, (3, 4), generator=torch.Generator().manual_seed(2))):
        flags: dict[str, Any] = {"max_new_tokens": 9, "repetition_penalty": 1.2, "pad_token_id": 0, **way}
        flags |= {"return_dict_in_generate": True, "output_scores": True}
        torch.manual_seed(11)
        ours = pair[0].generate(ids, guidance_scale=1.9, negative_prompt_ids=negative, **flags)
        first: Any = LogitsProcessorList([Guided(pair[0], 1.9, negative, ids.shape[1])])  # type: ignore[list-item]
        plain = dict(flags)
        penalty = plain.pop("repetition_penalty")
        first.append(RepetitionPenaltyLogitsProcessor(penalty))
        torch.manual_seed(11)
        theirs = pair[1].generate(ids, logits_processor=first, **plain)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        if "num_beams" in way:
            torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)
    wide = negative.repeat_interleave(way.get("num_beams", 2), 0)
    torch.manual_seed(11)
    again = pair[0].generate(ids, guidance_scale=1.9, negative_prompt_ids=wide, **flags)
    assert again.sequences.tolist() == ours.sequences.tolist()
    with pytest.raises(UsageError, match="negative_prompt_ids has 2 rows"):
        pair[0].generate(ids, guidance_scale=1.9, negative_prompt_ids=negative[:2], **flags)


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_and_criteria_of_the_user(pair: tuple[LlamaForCausalLM, Any], beams: int) -> None:
    def lift(ids: Tensor, logits: Tensor) -> Tensor:
        return logits.scatter_add(1, ids[:, -1:], torch.full((len(ids), 1), 5.0))

    def over(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 12)

    from transformers import LogitsProcessorList, StoppingCriteriaList

    ids, mask = prompts()
    ours = pair[0].generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        num_beams=beams,
        logits_processor=[lift],
        stopping_criteria=[over],
    )
    theirs = pair[1].generate(
        ids,
        attention_mask=mask,
        max_new_tokens=9,
        num_beams=beams,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([lift]),  # type: ignore[list-item]
        stopping_criteria=StoppingCriteriaList([over]),  # type: ignore[list-item]
    )
    assert ours.tolist() == theirs.tolist() and ours.shape[1] == 12


@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded", "quantized"])
@pytest.mark.parametrize("beams", [1, 2])
def test_caches_write_the_same(pair: tuple[LlamaForCausalLM, Any], cache: str, beams: int) -> None:
    ids, mask = prompts()
    flags: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 9, "num_beams": beams}
    plain = pair[0].generate(ids, **flags)
    assert pair[0].generate(ids, cache_implementation=cache, **flags).tolist() == plain.tolist()


def test_a_quantized_cache_is_as_its_config_says(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ids, mask = prompts()
    flags: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 30, "return_dict_in_generate": True}
    flags |= {"cache_implementation": "quantized", "eos_token_id": None}
    config = {"nbits": 4, "q_group_size": 4, "residual_length": 6, "backend": "quanto"}
    cache = pair[0].generate(ids, cache_config=config, **flags).past_key_values
    assert (cache.bits, cache.group, cache.residual) == (4, 4, 6)
    own = QuantizedCache(4, group=4, residual=6)
    flags["cache_implementation"] = None
    expected = pair[0].generate(ids, past_key_values=own, **flags)
    flags["cache_implementation"] = "quantized"
    assert pair[0].generate(ids, cache_config=config, **flags).sequences.tolist() == expected.sequences.tolist()
    plain = pair[0].generate(ids, **flags).past_key_values
    assert (plain.bits, plain.group, plain.residual) == (8, 64, 128)
    for wrong, message in (
        ({"nbits": 3}, "3 bits"),
        ({"q_group_size": 5}, "group=5"),
        ({"axis_key": 1}, "'axis_key', which is not known: use nbits"),
    ):
        with pytest.raises(LlamitaError, match=message):
            pair[0].generate(ids, cache_config=wrong, **flags)
    with pytest.raises(LlamitaError, match="is of quantized caches"):
        pair[0].generate(ids, cache_config={"nbits": 4})


def test_a_generation_config_object(pair: tuple[LlamaForCausalLM, Any]) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=6, num_beams=2, repetition_penalty=1.3, pad_token_id=0)
    ids, mask = prompts()
    ours = pair[0].generate(ids, attention_mask=mask, generation_config=config)
    assert ours.tolist() == pair[1].generate(ids, attention_mask=mask, generation_config=config).tolist()


def test_time_runs_out(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ids, _ = prompts()
    for flags in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        assert pair[0].generate(ids, max_new_tokens=50, max_time=0.0, **flags).shape[1] <= ids.shape[1] + 3


def test_guessing_reports_how_well_it_went(pair: tuple[LlamaForCausalLM, Any]) -> None:
    ids = prompts()[0]
    flags: dict[str, Any] = {"max_new_tokens": 12, "return_dict_in_generate": True}
    out = pair[0].generate(
        ids, assistant_model=pair[0], num_assistant_tokens=3, assistant_confidence_threshold=0.0, **flags
    )
    assert out.acceptance.rate == 1.0 and out.acceptance.tokens_per_pass > 2
    assert out.sequences.tolist() == pair[0].generate(ids, max_new_tokens=12).tolist()
