"""Every stage of the chain equals transformers' processor bit for bit, alone, together, and row by row."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import generation
from transformers.generation.watermarking import WatermarkDetector

from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.per_row import EachRow
from llamita.sampling.sampler import LogitsProcessorList
from llamita.sampling.watermark import WatermarkingConfig, detect

V, B, P = 97, 5, 6
EOS = [3, 11]


@pytest.fixture(scope="module")
def model() -> transformers.LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, **sizes))


def case(seed: int, *, written: int, rows: int = B, prompt: int = P) -> tuple[Tensor, Tensor]:
    """Logits (B, V) and ids (B, T) of few different tokens, so that they repeat."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, V, generator=generator) * 3
    return logits, torch.randint(0, 12, (rows, prompt + written), generator=generator)


def theirs(
    model: Any, flags: dict[str, Any], input_ids: Tensor, *, prompt: int = P, mask: Tensor | None = None
) -> generation.LogitsProcessorList:
    extra = {name: flags[name] for name in ("prefix_allowed_tokens_fn", "logits_processor") if name in flags}
    config = transformers.GenerationConfig(**{k: v for k, v in flags.items() if k not in extra})
    config._eos_token_tensor = torch.tensor(flags["eos_token_id"])
    if "logits_processor" in extra:
        extra["logits_processor"] = generation.LogitsProcessorList(extra["logits_processor"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model._get_logits_processor(
            config,
            input_ids_seq_length=prompt,
            encoder_input_ids=input_ids[:, :prompt],
            device="cpu",
            model_kwargs={"attention_mask": mask},
            **extra,
        )


def ours(flags: dict[str, Any], rows: int = B) -> LogitsProcessorList:
    return LogitsProcessorList(SamplingParams(**flags), rows=rows)


def history(input_ids: Tensor, *, prompt: int = P, first: Tensor | None = None) -> History:
    return History(input_ids, prompt, first)


# One of each flag that both have; lists are the values of five rows.
SAMPLING: dict[str, list[Any]] = {
    "temperature": [0.7, 1.3, 0.1, 2.5, 1.0],
    "top_h": [0.3, 0.9, 0.5, 1.0, 0.05],
    "top_k": [1, 5, 50, 200, 3],
    "top_p": [0.1, 0.9, 0.5, 0.99, 0.0],
    "min_p": [0.02, 0.1, 0.5, 0.9, 1.0],
    "typical_p": [0.2, 0.9, 0.5, 0.95, 0.01],
    "epsilon_cutoff": [3e-4, 0.01, 0.1, 0.5, 0.9],
    "eta_cutoff": [3e-4, 0.01, 0.1, 0.5, 0.9],
}
NUMBERS: dict[str, list[Any]] = {
    "repetition_penalty": [1.1, 0.8, 3.0, 1.5, 1.01],
    "encoder_repetition_penalty": [1.1, 0.8, 3.0, 1.5, 1.01],
    "no_repeat_ngram_size": [1, 2, 3, 2, 9],
    "encoder_no_repeat_ngram_size": [1, 2, 3, 2, 9],
    "min_length": [1, 7, 8, 9, 20],
    "min_new_tokens": [1, 2, 3, 4, 20],
}
TABLES: dict[str, list[Any]] = {
    "sequence_bias": [
        {(5,): 2.5, (7, 2): -4.0, (1, 2): 3.0, (3, 2): 0.3, (9, 8, 7): float("-inf")},
        [[[4], -1.0], [[4, 4], 7.0]],
        {(2, 2): 0.1, (1, 2): 0.2, (6,): -0.7},
        {(0,): float("-inf")},
        {(10, 1): 1.0},
    ],
    "bad_words_ids": [[[5], [3], [1, 2]], [[4, 4]], [[2], [2, 2]], [[11], [0]], [[7, 8, 9]]],
    "suppress_tokens": [[1, 2], [0], [96, 3], [5, 5], [50]],
    "begin_suppress_tokens": [[1, 2], [0], [96, 3], [5, 5], [50]],
    "forced_eos_token_id": [3, [3, 11], 0, 96, [5]],
    "exponential_decay_length_penalty": [(1, 1.05), (0, 1.5), (2, 1.01), (8, 3.0), (1, 0.9)],
    "watermarking_config": [
        {"greenlist_ratio": 0.25, "bias": 2.0},
        {"greenlist_ratio": 0.5, "bias": 1.0, "seeding_scheme": "selfhash"},
        {"greenlist_ratio": 0.1, "bias": 3.0, "hashing_key": 17, "context_width": 2},
        {"greenlist_ratio": 0.3, "bias": 0.5, "seeding_scheme": "selfhash", "context_width": 3},
        {"greenlist_ratio": 0.9, "bias": -1.0},
    ],
}
FIXED: dict[str, Any] = {"do_sample": True, "top_k": 0, "eos_token_id": EOS, "max_length": P + 3}


def hf_value(name: str, value: Any) -> Any:
    return transformers.WatermarkingConfig(**value) if name == "watermarking_config" else value


def values() -> Iterator[tuple[str, Any]]:
    for name, rows in {**SAMPLING, **NUMBERS, **TABLES}.items():
        yield from ((name, value) for value in rows)
    yield "forced_bos_token_id", 4
    yield "remove_invalid_values", True
    yield "renormalize_logits", True


@pytest.mark.parametrize(("name", "value"), [pytest.param(*pair, id=f"{pair[0]}-{pair[1]}") for pair in values()])
def test_each_stage_equals_transformers(name: str, value: Any, model: Any) -> None:
    for seed, written in enumerate((0, 1, 2, 9)):
        logits, ids = case(seed, written=written)
        if name == "remove_invalid_values":
            logits[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        expected = theirs(model, {**FIXED, name: hf_value(name, value)}, ids)(ids, logits.clone())
        before = logits.clone()
        assert torch.equal(ours({**FIXED, name: value})(logits, history(ids)), expected)
        assert torch.equal(logits.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("beams", [1, 3])
def test_random_sets_of_flags_equal_transformers(beams: int, model: Any) -> None:
    """All at once, in transformers' order; with beams the filters leave a token more than end tokens."""
    rows = B * beams
    choose = random.Random(beams)
    names = [*SAMPLING, *NUMBERS, *TABLES]
    for seed in range(40):
        flags = {n: choose.choice({**SAMPLING, **NUMBERS, **TABLES}[n]) for n in choose.sample(names, 6)}
        flags = {**FIXED, "num_beams": beams, "do_sample": seed % 4 > 0, **flags}
        flags["renormalize_logits"] = seed % 3 == 0
        flags["logits_processor"] = [lambda ids, scores: scores + ids[:, -1:] * 0.01]
        logits, ids = case(seed, written=seed % 5, rows=rows)
        source = ids[::beams]  # the prompt of a beam
        ids[:, :P] = source[:, :P].repeat_interleave(beams, 0)
        given = {n: hf_value(n, v) for n, v in flags.items()}
        expected = theirs(model, given, source)(ids, logits.clone())
        assert torch.equal(ours(flags, rows)(logits, history(ids)), expected), flags


@pytest.mark.parametrize("name", [*SAMPLING, *NUMBERS, *TABLES])
def test_values_by_row_are_each_row_alone(name: str) -> None:
    rows = {**SAMPLING, **NUMBERS, **TABLES}[name]
    kind = EachRow if name in TABLES else list
    for seed in range(4):
        logits, ids = case(seed, written=seed * 2)
        together = ours({**FIXED, name: kind(rows)})(logits, history(ids))
        alone = [ours({**FIXED, name: one}, 1)(logits[[i]], history(ids[[i]])) for i, one in enumerate(rows)]
        assert torch.equal(together, torch.cat(alone))


def test_padding_is_no_text_for_the_repetition_penalty(model: Any) -> None:
    for seed in range(3):
        logits, ids = case(seed, written=2)
        mask = torch.ones(B, P, dtype=torch.long)
        for row in range(B):
            mask[row, :row] = 0
        ids[:, :P] *= mask
        flags = {**FIXED, "repetition_penalty": 1.7}
        expected = theirs(model, flags, ids, mask=mask)(ids, logits.clone())
        assert torch.equal(ours(flags)(logits, history(ids, first=torch.arange(B))), expected)


def test_forced_first_token_and_what_follows(model: Any) -> None:
    flags = {**FIXED, "forced_bos_token_id": 4, "begin_suppress_tokens": [1, 2]}
    for written in range(3):
        logits, ids = case(written, written=written, prompt=1)
        expected = theirs(model, flags, ids, prompt=1)(ids, logits.clone())
        assert torch.equal(ours(flags)(logits, history(ids, prompt=1)), expected)


@pytest.mark.parametrize("beams", [1, 2])
def test_prefix_function_equals_transformers(beams: int, model: Any) -> None:
    def allowed(prompt: int, ids: Tensor) -> list[int]:
        return [prompt, int(ids[-1]) + 1]

    flags = {**FIXED, "num_beams": beams, "prefix_allowed_tokens_fn": allowed}
    logits, ids = case(1, written=2, rows=B * beams)
    expected = theirs(model, flags, ids)(ids, logits.clone())
    assert torch.equal(ours(flags, B * beams)(logits, history(ids)), expected)


@pytest.mark.parametrize("config", TABLES["watermarking_config"], ids=str)
@pytest.mark.parametrize("is_once", [False, True])
def test_watermark_detector_equals_transformers(config: dict, is_once: bool, model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(0, V, (3, 40), generator=generator)
    texts[:, 20:] = texts[:, :20]
    for bos in (None, 1):
        if bos is not None:
            texts[:, 0] = bos
        whole = transformers.WatermarkingConfig(**config).to_dict()
        detector = WatermarkDetector(model.config, "cpu", whole, ignore_repeated_ngrams=is_once)
        expected = detector(texts, return_dict=True)
        found = detect(
            texts, WatermarkingConfig(**config), vocabulary=V, bos_token_id=1, ignore_repeated_ngrams=is_once
        )
        for name in ("num_tokens_scored", "num_green_tokens", "green_fraction", "z_score", "p_value", "confidence"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
        assert found.prediction.tolist() == expected.prediction.tolist()
