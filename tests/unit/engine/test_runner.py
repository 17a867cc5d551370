"""Requests of several adapters share steps, and each gets what the model loaded with its adapter alone writes."""

from pathlib import Path
from typing import Any

import pytest
import torch

import llamita
from llamita.bench.replays import requests
from llamita.engine.engine import Engine
from llamita.engine.limits import EngineLimits
from llamita.engine.receipt import differences, replay
from llamita.errors import UsageError
from llamita.generation.text_options import TextModel
from llamita.llm import LLM

NAMES = (None, "one", "two")
SMALL = EngineLimits(max_num_seqs=5, max_num_batched_tokens=7, block_size=4, num_blocks=34)
LOADS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bfloat16"},
    "q8_0": {"dtype": "bfloat16", "quantize": "q8_0"},
    "plain": {"dtype": "float32", "kernels": "off", "deterministic": True},
}


@pytest.fixture(scope="module", params=list(LOADS))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LOADS[request.param]


@pytest.fixture(scope="module")
def llm(small_path: Path, adapter: Path, other_adapter: Path, options: dict[str, Any]) -> LLM:
    return llamita.load(small_path, adapters={"one": adapter, "two": other_adapter}, **options)


@pytest.fixture(scope="module")
def alone(small_path: Path, adapter: Path, other_adapter: Path, options: dict[str, Any]) -> dict[str | None, LLM]:
    """The models that the adapters are merged into, loaded by themselves."""
    folders = {None: None, "one": adapter, "two": other_adapter}
    return {name: llamita.load(small_path, adapter=folder, **options) for name, folder in folders.items()}


def adapters_of_steps(engine: Engine) -> list[int]:
    """How many models each step had requests of, as they come."""
    counts: list[int] = []
    run = engine._core.runner.run

    def counted(step: Any, guesses: Any) -> Any:
        counts.append(len({part.request.adapter for part in step.scheduled}))
        return run(step, guesses)

    engine._core.runner.run = counted
    return counts


def test_r36_each_answer_is_that_of_its_adapter_alone(llm: LLM, alone: dict[str | None, LLM]) -> None:
    asked = [(prompt, {**options, "logprobs": 2}) for prompt, options in requests(18, 5, longest=60, most=20)]
    with llm.engine(SMALL) as engine:
        counts = adapters_of_steps(engine)
        handles = [
            engine.submit(prompt, adapter=NAMES[number % 3], **options)
            for number, (prompt, options) in enumerate(asked)
        ]
        written = [handle.result(300) for handle in handles]
        receipts = [engine.receipt(handle) for handle in handles]
        assert engine.stats.preemptions > 0
    assert max(counts) == 3
    for handle, completion, receipt in zip(handles, written, receipts, strict=True):
        own = alone[handle.adapter]
        texts = TextModel(own.model, own.tokenizer, adapter=own.adapter)
        again, its = replay(receipt, texts, handle.prompt_token_ids)
        assert differences(receipt, its) == []
        assert again == completion


def test_ts13_adapters_differ_and_share_no_cache(llm: LLM) -> None:
    prompt = "The same prompt of several blocks, asked of each"
    with llm.engine() as engine:
        for _ in range(2):
            found = []
            for name in NAMES:
                handle = engine.submit(prompt, adapter=name, max_tokens=8, logprobs=0, temperature=0)
                found.append((handle.result().logprobs, handle.metrics.cached_tokens))
            assert len({str(logprobs) for logprobs, _ in found}) == 3
            first = [cached for _, cached in found]
        assert min(first) > 16  # the second time each finds its own
        facts = [engine.facts(name) for name in NAMES]
    assert len({one.weights for one in facts}) == 3
    assert facts[0].adapter is None
    assert len({one.adapter for one in facts}) == 3


def test_the_first_time_an_adapter_finds_nothing(llm: LLM) -> None:
    with llm.engine() as engine:
        cached = []
        for name, salt in ((None, ""), ("one", ""), ("two", ""), (None, "one"), (None, '["one", ""]'), ("one", "")):
            prompt = "A prompt of some blocks, as long as two of them"
            handle = engine.submit(prompt, adapter=name, cache_salt=salt, max_tokens=1)
            handle.result()
            cached.append(handle.metrics.cached_tokens)
    assert cached[:5] == [0] * 5
    assert cached[5] > 0


def test_an_unknown_adapter(llm: LLM) -> None:
    with (
        llm.engine() as engine,
        pytest.raises(UsageError, match="no adapter 'three': the model was loaded with one, two"),
    ):
        engine.submit("a", adapter="three")


def test_what_an_adapter_leaves_alone_is_the_models_memory(llm: LLM) -> None:
    adapted = llm._texts.adapters["one"].model
    assert adapted.model.embed_tokens is not llm.model.model.embed_tokens
    mine, its = (one.model.layers[1].mlp.up_proj for one in (adapted, llm.model))
    if isinstance(mine, torch.nn.Linear):
        assert mine.weight.data_ptr() == its.weight.data_ptr()
    else:
        assert mine.matrix is its.matrix
