"""Guesses change no answer, whatever else runs, and are off where they would cost more than they save."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.bench.replays import requests
from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.engine.proposer import Proposer
from llamita.errors import UsageError
from llamita.kernels.cpu.linear import FEW
from llamita.llm import LLM
from tests.unit.engine.integrity import checked

SMALL: dict[str, Any] = {"max_num_seqs": 5, "max_num_batched_tokens": 7, "block_size": 4, "num_blocks": 34}


@pytest.fixture(scope="module", params=["bfloat16", "q8_0"])
def llm(small_path: Path, request: pytest.FixtureRequest) -> LLM:
    quantize = request.param if request.param == "q8_0" else None
    return llamita.load(small_path, dtype="bfloat16", quantize=quantize)


@pytest.fixture(scope="module")
def drafted(small_path: Path) -> LLM:
    """A model with a draft that is right: itself."""
    return llamita.load(small_path, dtype="bfloat16", draft=small_path)


def rows_of_passes(engine: Engine) -> list[int]:
    """The tokens of each pass that reads no prompt, guesses included, as they come."""
    counts: list[int] = []
    run = engine._core.runner.logits

    def counted(model: Any, rows: Any) -> Any:
        if set(rows.counts) == {1}:
            counts.append(len(rows.counts))
        return run(model, rows)

    engine._core.runner.logits = counted
    return counts


def written(llm: LLM, asked: Any, limits: EngineLimits) -> tuple[list[Any], Any, list[int]]:
    with checked(llm.engine(limits)) as engine:
        counts = rows_of_passes(engine)
        handles = [engine.submit(prompt, **options) for prompt, options in asked]
        return [handle.result(300) for handle in handles], engine.stats, counts


def test_answers_are_the_same_with_guesses_of_their_own_texts(llm: LLM) -> None:
    asked = [(prompt, {**options, "logprobs": 2}) for prompt, options in requests(16, 5, longest=50, most=40)]
    plain, _, _ = written(llm, asked, EngineLimits(**SMALL, num_speculative_tokens=0))
    guessed, stats, _ = written(llm, asked, EngineLimits(**SMALL, num_speculative_tokens=4))
    assert guessed == plain
    assert stats.preemptions > 0
    assert 0 < stats.accepted_tokens < stats.draft_tokens


def test_a_text_alone_is_written_in_fewer_steps(drafted: LLM) -> None:
    asked = [("Once upon", {"max_tokens": 40, "temperature": 0, "logprobs": 1})]
    plain, before, _ = written(drafted, asked, EngineLimits(num_speculative_tokens=0))
    guessed, stats, counts = written(drafted, asked, EngineLimits())
    assert guessed == plain
    assert before.draft_tokens == 0
    assert stats.accepted_tokens == stats.draft_tokens > 20  # the draft is the model
    assert stats.steps < before.steps / 2
    assert max(counts) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.3, "seed": 4, "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.5},
        {"temperature": 0, "regex": "(ab|cd)*e{30}"},
        {"temperature": 0, "stop": ["\ufffd", "a"]},
        {"temperature": 1.0, "seed": 5, "json_schema": {"type": "array", "items": {"enum": ["one", "two"]}}},
        {"temperature": 0, "logit_bias": {97: 100.0}},
    ],
)
def test_every_setting_is_followed(drafted: LLM, small_path: Path, options: dict[str, Any]) -> None:
    asked = [("Once upon a time, upon a", {"max_tokens": 30, "logprobs": 1, **options})]
    plain, _, _ = written(drafted, asked, EngineLimits(num_speculative_tokens=0))
    for llm in (drafted, llamita.load(small_path, dtype="bfloat16")):
        assert written(llm, asked, EngineLimits(num_speculative_tokens=5))[0] == plain


@pytest.mark.parametrize("count", [3, 6, 9])
def test_no_pass_has_more_rows_than_are_cheap(drafted: LLM, count: int) -> None:
    asked = [(letter, {"max_tokens": 25, "temperature": 0}) for letter in "abcdefghi"[:count]]
    guessed, stats, counts = written(drafted, asked, EngineLimits(num_speculative_tokens=8))
    assert guessed == written(drafted, asked, EngineLimits(num_speculative_tokens=0))[0]
    assert stats.accepted_tokens > 0 or count == 9  # nine rows of two tokens are too many
    assert max(counts) <= FEW


def test_a_draft_that_fails_ends_no_request(drafted: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Proposer, "propose", fail)
    asked = [("a", {"max_tokens": 9, "temperature": 0})]
    guessed, stats, _ = written(drafted, asked, EngineLimits())
    assert guessed == written(drafted, asked, EngineLimits(num_speculative_tokens=0))[0]
    assert stats.draft_tokens == 0


def test_without_kernels_nothing_is_guessed(small_path: Path) -> None:
    plain = llamita.load(small_path, dtype="float32", kernels="off", draft=small_path)
    stats = written(plain, [("a", {"max_tokens": 9, "temperature": 0})], EngineLimits())[1]
    assert stats.draft_tokens == 0


def test_adapters_are_guessed_for_too(small_path: Path, adapter: Path) -> None:
    llm = llamita.load(small_path, dtype="bfloat16", adapters={"one": adapter})
    texts = []
    for most in (0, 5):
        with llm.engine(EngineLimits(num_speculative_tokens=most)) as engine:
            options: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "logprobs": 0}
            handles = [engine.submit("upon a time upon a", adapter=name, **options) for name in (None, "one")]
            texts.append([handle.result(300) for handle in handles])
    assert texts[0] == texts[1]


def test_a_proposer_learns() -> None:
    proposer = Proposer(None, 8)
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    assert proposer.propose(text, 5) == [3, 4, 5, 6, 7]
    assert proposer.propose(text, 0) == []
    proposer.learn(5, 1)
    assert proposer.propose(text, 5) == [3, 4]
    proposer.learn(2, 2)
    assert proposer.propose(text, 9) == [3, 4, 5, 6]
    assert proposer.propose([1, 2, 3], 5) == []


def test_a_draft_of_other_tokens_is_refused(small_path: Path, cria_path: Path) -> None:
    llm = llamita.load(small_path, draft=cria_path)
    with pytest.raises(UsageError, match="the draft model has 2048 tokens and the model 260"):
        llm.engine()
    with pytest.raises(UsageError, match="num_speculative_tokens is -1"):
        EngineLimits(num_speculative_tokens=-1)


def test_a_draft_with_a_shorter_context_stops_there(small_path: Path, tmp_path: Path) -> None:
    short = shutil.copytree(small_path, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
    llm = llamita.load(small_path, dtype="bfloat16", draft=short)
    asked = [("Once upon", {"max_tokens": 60, "temperature": 0})]
    guessed, stats, _ = written(llm, asked, EngineLimits())
    assert guessed == written(llm, asked, EngineLimits(num_speculative_tokens=0))[0]
    assert 0 < stats.draft_tokens < 20
