"""lm-eval on our models: the same numbers as lm-eval's own model class on transformers."""

from pathlib import Path
from typing import Any

import pytest

import llamita

pytest.importorskip("lm_eval", reason="lm-eval is no dependency of the tests")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llamita.bridge.lm_eval import HarnessModel, evaluate
from llamita.errors import UsageError

TEXTS = ["Once upon a time, there was a fox. " * 30, "A short text."]
PAIRS = [("What is", " 7 + 5?"), ("", "Once upon"), ("Once upon a ", "time"), ("The fox " * 300, "ran")]
QUESTIONS = [("Once upon a time", {"until": ["."], "max_gen_toks": 24}), ("Mia had", {"until": [], "max_gen_toks": 9})]


def asked(kind: Any, arguments: list[Any]) -> list[Instance]:
    """Requests of a kind, as lm-eval makes them."""
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_requests_have_the_answers_of_lm_evals_own_model(cria_path: Path) -> None:
    ours = HarnessModel(llamita.load(device="cpu", kernels="off", dtype="float32"))
    theirs = HFLM(pretrained=str(cria_path), device="cpu", dtype="float32", batch_size=1, max_length=512)
    pairs, texts = asked("loglikelihood", list(PAIRS)), asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    for (mine, is_greedy), (their, is_their_greedy) in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True
    ):
        assert mine == pytest.approx(their, rel=1e-5, abs=1e-5)
        assert is_greedy == is_their_greedy
    # With its default, HFLM predicts a BOS after the BOS that begins a text.
    plain = HFLM(pretrained=str(cria_path), device="cpu", dtype="float32", max_length=512, add_bos_token=False)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(plain.loglikelihood_rolling(texts), rel=1e-5)
    questions = asked("generate_until", list(QUESTIONS))
    assert ours.generate_until(questions) == theirs.generate_until(questions)


def test_an_unknown_task_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="lm-eval has no task nonsense_of_ours"):
        evaluate(llamita.load(device="cpu", kernels="off"), ["nonsense_of_ours"])
