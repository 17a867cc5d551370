"""Extreme numbers, damaged weights and special tokens that stop: texts through the front door."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llamita
from llamita.errors import LlamitaError, NotFiniteError
from llamita.llm import LLM


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    return llamita.load(small_path)


@pytest.mark.parametrize("seed", [None, 1])
def test_extreme_numbers_write_tokens(llm: LLM, seed: int | None) -> None:
    greedy = llm.generate("abc", max_tokens=4, temperature=0.0).token_ids
    for cold in (1e-38, 1e-45, 5e-324):
        assert llm.generate("abc", max_tokens=4, temperature=cold, seed=seed).token_ids == greedy
    extremes: list[dict[str, Any]] = [
        {"temperature": 1e308}, {"repetition_penalty": 1e39}, {"repetition_penalty": 5e-324},
        {"presence_penalty": 1e39}, {"frequency_penalty": -1e39}, {"top_k": 10**30}, {"max_tokens": 2**70},
        {"logprobs": 2**70}, {"top_p": 5e-324},
        {"temperature": 10**30}, {"repetition_penalty": 10**30}, {"presence_penalty": 10**30},
        {"frequency_penalty": -(10**400)}, {"temperature": 10**400},
        {"temperature": 1e-30, "presence_penalty": -1e39, "repetition_penalty": 1e39},
    ]  # fmt: skip
    for extreme in extremes:
        options: Any = {"max_tokens": 4, "temperature": 0.8, "seed": seed, **extreme}
        tokens = llm.generate("abc", **options).token_ids
        assert tokens and all(0 <= token < 260 for token in tokens)
    for bias in (math.inf, 1e39):
        forced = llm.generate("abc", max_tokens=3, temperature=0.1, seed=seed, logit_bias={65: bias})
        assert forced.token_ids == [65, 65, 65]


def test_a_stop_text_may_name_a_special_token(llm: LLM) -> None:
    options: Any = {"max_tokens": 5, "temperature": 0.0, "logit_bias": {259: 1e9}, "stop": ["never", "<|pad|>"]}
    for written in (llm.generate("abc", **options), *llm.generate(["abc", "x"], **options)):
        assert (written.token_ids, written.text, written.stop_reason) == ([259], "", "<|pad|>")
    assert "".join(llm.stream("abc", **options)) == ""


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_damaged_weights_are_named(small_path: Path, kernels: str) -> None:
    llm = llamita.load(small_path, kernels=kernels)
    with torch.no_grad():
        llm.model.model.norm.weight.fill_(math.nan)
    ways: list[Any] = [{"temperature": 0.0}, {"temperature": 0.8}, {"top_k": 5, "top_p": 0.9, "seed": 1}]
    for options in ways:
        with pytest.raises(NotFiniteError, match="its weights are damaged"):
            llm.generate("abc", max_tokens=3, **options)


def test_numbers_of_numpy_and_torch_are_taken(llm: LLM) -> None:
    plain: Any = {"max_tokens": 4, "temperature": 0.5, "top_k": 5, "seed": 3, "repetition_penalty": 2.0, "logprobs": 1}
    plain["logit_bias"] = {65: 1.0}
    odd: Any = {
        "max_tokens": np.int64(4), "temperature": np.float32(0.5), "top_k": torch.tensor(5), "seed": np.int32(3),
        "repetition_penalty": np.array(2.0), "logprobs": np.int8(1), "logit_bias": {np.int64(65): np.float32(1.0)},
    }  # fmt: skip
    wanted = llm.generate("abc", **plain)
    assert llm.generate("abc", **odd) == wanted
    assert "".join(llm.stream("abc", **odd)) == wanted.text
    with llm.engine() as engine:
        assert engine.submit("abc", **odd).result() == wanted
    assert len(llm.generate(["abc", "d"], **odd)) == 2


@pytest.mark.parametrize("value", [3, 0.5, True, b"a", [0.5], np.int64(3), torch.tensor(3)], ids=repr)
@pytest.mark.parametrize(
    "name", ["stop", "regex", "grammar", "choice", "json_schema", "stopping_criteria", "logit_bias", "negative_prompt"]
)
def test_what_is_of_another_kind_is_a_sentence(llm: LLM, name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(LlamitaError) as caught:
        llm.generate("abc", max_tokens=2, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(LlamitaError, match=r"^num_beams is .*: it must be a whole number of at least 1$"):
        llm.generate(["a", "b"], num_beams=str(value))  # pyright: ignore
