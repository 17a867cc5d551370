"""R8: what the engine draws from is what OpenAI's formulas and the filters' definitions say, written plainly."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llamita
from llamita.errors import LlamitaError
from llamita.generation.text_options import TextOptions, settings_of
from llamita.llm import LLM
from llamita.sampling.history import History
from llamita.sampling.sampler import LogitsProcessorList

V, ROWS = 37, 4  # tokens of the vocabulary, rows of each example
PROMPT, WRITTEN = [1, 2, 2, 3], [3, 4, 4, 5]


@pytest.fixture(scope="module")
def llm(small_path: Path) -> LLM:
    """A model of bytes, for its tokenizer."""
    return llamita.load(small_path)


@st.composite
def options(draw: st.DrawFn) -> TextOptions:
    """Settings of every kind, each left out now and then."""
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "temperature": st.floats(0.05, 2),
        "top_k": st.integers(0, V + 2),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 0.9),
        "repetition_penalty": st.floats(0.5, 2),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=5),
    }
    names = draw(st.sets(st.sampled_from(sorted(kinds))))
    return TextOptions(**{"temperature": 1.0, **{name: draw(kinds[name]) for name in sorted(names)}})


def plain(logits: np.ndarray, asked: TextOptions) -> np.ndarray:
    """The probabilities (V,) of the next token, from logits (V,), one setting after another, as their papers say.

    Scores are fp32, as logits are: at a low temperature their rounding alone changes probabilities by more than 1e-6.
    """
    scores = logits.astype(np.float32)
    for token, bias in (asked.get("logit_bias") or {}).items():
        scores[token] += bias
    penalty = asked.get("repetition_penalty") or 1.0
    for token in {*PROMPT, *WRITTEN}:
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token, count in Counter(WRITTEN).items():
        scores[token] -= (asked.get("presence_penalty") or 0) + count * (asked.get("frequency_penalty") or 0)
    scores /= asked.get("temperature") or 1.0
    order = np.argsort(-scores, kind="stable")
    kept = np.ones(V, dtype=bool)
    if k := asked.get("top_k"):
        kept &= scores >= scores[order[min(k, V) - 1]]
    if (p := asked.get("top_p")) is not None and p < 1:
        shares = softmax(np.where(kept, scores, -math.inf))[order]
        kept[order[np.concatenate(([False], np.cumsum(shares)[:-1] >= p))]] = False
    if m := asked.get("min_p"):
        shares = softmax(np.where(kept, scores, -math.inf))
        kept &= shares >= m * shares.max()
    return softmax(np.where(kept, scores, -math.inf))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp((scores - scores.max()).astype(np.float64))
    return powers / powers.sum()


def at_an_edge(logits: np.ndarray, asked: TextOptions) -> bool:
    """Whether a hair's breadth decides what a filter keeps: there fp32 and fp64 may differ."""
    near = {
        **asked,
        **{name: asked[name] * (1 - 1e-4) for name in ("top_p", "min_p") if asked.get(name)},
    }
    far = {**asked, **{name: min(1.0, asked[name] * (1 + 1e-4)) for name in ("top_p", "min_p") if asked.get(name)}}
    kept = [plain(logits, TextOptions(**one)) > 0 for one in (near, asked, far)]
    return not (kept[0] == kept[1]).all() or not (kept[1] == kept[2]).all()


@settings(max_examples=50)
@given(options(), st.integers(0, 2**32 - 1))
def test_r8_probabilities_are_those_of_the_formulas(llm: LLM, asked: TextOptions, seed: int) -> None:
    """In 200 rows in all."""
    logits = torch.randn(ROWS, V, generator=torch.Generator().manual_seed(seed)) * 3
    made = settings_of(asked, {}, llm.tokenizer, reads_on=True, is_plain=True)
    history = History(torch.tensor([PROMPT + WRITTEN] * ROWS), len(PROMPT))
    found = LogitsProcessorList(made, rows=ROWS)(logits, history).double().softmax(-1).numpy()
    for row, ours in zip(logits.numpy(), found, strict=True):
        if not at_an_edge(row, asked):
            np.testing.assert_allclose(ours, plain(row, asked), atol=1e-6)


def test_r8_a_vocabulary_that_is_banned_whole_is_an_error(llm: LLM) -> None:
    nothing = dict.fromkeys(range(llm.model.config.vocab_size), -math.inf)
    with llm.engine() as engine:
        with pytest.raises(LlamitaError):
            engine.submit("a", max_tokens=3, temperature=1.0, logit_bias=nothing).result(300)
        assert engine.submit("a", max_tokens=3, temperature=1.0).result(300).token_ids
