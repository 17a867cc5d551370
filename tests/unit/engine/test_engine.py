"""The engine writes what each request gets alone, whatever runs beside it, and one request's fault is its own."""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llamita
from llamita.bench.replays import requests
from llamita.config import RopeConfig
from llamita.engine.limits import EngineLimits
from llamita.errors import (
    AbortedError,
    ClosedError,
    NotFiniteError,
    OverdueError,
    OverloadedError,
    UnsupportedError,
    UsageError,
)
from llamita.generation.completion import Completion
from llamita.llm import LLM
from llamita.plans.cpu.watch import Watch
from tests.architecture.source import ROOT
from tests.unit.engine.integrity import checked
from tests.zygote import Zygote, result


@pytest.fixture(scope="module", params=["auto", "off"])
def llm(small_path: Path, request: pytest.FixtureRequest) -> LLM:
    """A model in fp32, with kernels and without."""
    return llamita.load(small_path, dtype="float32", kernels=request.param)


@pytest.fixture(scope="module")
def fast(small_path: Path) -> LLM:
    """A model with kernels."""
    return llamita.load(small_path, dtype="bfloat16")


def outcome(completion: Completion) -> tuple[Any, ...]:
    """All of a completion that is promised."""
    return completion.text, completion.token_ids, completion.finish_reason, completion.stop_reason, completion.logprobs


SMALL = EngineLimits(max_num_seqs=5, max_num_batched_tokens=7, block_size=4, num_blocks=34)
DEFAULT = EngineLimits()


@pytest.mark.parametrize("limits", [SMALL, DEFAULT], ids=["pressure", "default"])
def test_r1_r3_r7_texts_are_those_of_requests_alone(fast: LLM, limits: EngineLimits) -> None:
    asked = requests(24, 1, longest=90, most=30)
    expected = [outcome(fast.generate(prompt, **options)) for prompt, options in asked]
    with checked(fast.engine(limits)) as engine:
        handles = [engine.submit(prompt, **options) for prompt, options in asked]
        assert [outcome(handle.result(300)) for handle in handles] == expected
        again = [engine.submit(prompt, **options) for prompt, options in asked]  # from a warm cache
        assert [outcome(handle.result(300)) for handle in again] == expected
        assert sum(handle.metrics.cached_tokens for handle in again) > 0
        stats = engine.stats
    assert (stats.preemptions > 0) == (limits is SMALL)
    assert stats.free_blocks == stats.blocks


def test_r1_texts_without_kernels_are_greedy_texts(llm: LLM) -> None:
    prompts = ["Once upon a time", "abc", "Once upon a llama" * 4]
    with checked(llm.engine(SMALL)) as engine:
        handles = [engine.submit(prompt, max_tokens=12, temperature=0.0) for prompt in prompts]
        texts = [handle.result(300).text for handle in handles]
    assert texts == [llm.generate(prompt, max_tokens=12, temperature=0.0).text for prompt in prompts]


def test_r2_a_second_request_reads_only_the_end_of_its_prompt(fast: LLM) -> None:
    prompt = "Once upon a time there was a llama"
    options: Any = {"max_tokens": 4, "seed": 1, "temperature": 1.0}
    with checked(fast.engine(EngineLimits(block_size=8))) as engine:
        handles = [engine.submit(prompt, **options)]
        for _ in range(4):  # each after the end of the one before
            handles[-1].result(300)
            handles.append(engine.submit(prompt, **options))
        outcomes = [outcome(handle.result(300)) for handle in handles]
        counts = [handle.metrics.cached_tokens for handle in handles]
        assert counts == [0] + 4 * [len(handles[0].prompt_token_ids) - 1]  # whole blocks, and the tail by a copy
        assert outcomes == 5 * [outcome(fast.generate(prompt, **options))]
        other = engine.submit(prompt, max_tokens=4, cache_salt="other")
        other.result(300)
        assert other.metrics.cached_tokens == 0


def test_ts13_salts_are_never_shared(fast: LLM) -> None:
    with checked(fast.engine()) as engine:
        for salt in ("a", "b", "a"):
            handle = engine.submit("a long enough prompt for a block", max_tokens=2, cache_salt=salt)
            handle.result(300)
        assert handle.metrics.cached_tokens > 0


def test_r4_what_can_never_run_is_refused_at_once(fast: LLM) -> None:
    with checked(fast.engine(EngineLimits(num_blocks=4, block_size=4))) as engine:
        with pytest.raises(UsageError, match="at most 16"):
            engine.submit("more than sixteen tokens", max_tokens=1)
        assert len(engine.submit("eight", max_tokens=500, temperature=0.0).result(300).token_ids) <= 16 - 6


def test_r6_aborts_at_any_time(fast: LLM) -> None:
    with checked(fast.engine(SMALL)) as engine:
        handles = [engine.submit("Once upon a time", max_tokens=100, seed=1, temperature=1.5) for _ in range(12)]
        for handle in handles[::2]:
            handle.abort()
            handle.abort()
        next(iter(handles[1]))
        handles[1].abort()
        for handle in (*handles[::2], handles[1]):
            with pytest.raises(AbortedError):
                handle.result(300)
        for handle in handles[3::2]:
            handle.result(300)
            handle.abort()  # is over: nothing happens
            handle.result(0)
        assert (engine.stats.running, engine.stats.waiting) == (0, 0)
        assert engine.stats.free_blocks == engine.stats.blocks


def test_r9_pieces_join_to_the_text(fast: LLM) -> None:
    with fast.engine() as engine:
        options: Any = {"max_tokens": 30, "temperature": 1.0, "seed": 2, "logprobs": 1}
        assert "".join(engine.submit("Once", **options)) == engine.submit("Once", **options).result(300).text

        async def read() -> None:
            handle = engine.submit("Once", **options)
            deltas = [delta async for delta in handle]
            whole = await handle.completion()
            assert "".join(delta.text for delta in deltas) == whole.text
            assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
            assert [entry for delta in deltas for entry in delta.logprobs] == whole.logprobs

        asyncio.run(read())


def test_r12_prompt_logprobs(fast: LLM) -> None:
    with fast.engine() as engine:
        whole = engine.submit("Once upon", max_tokens=2, prompt_logprobs=2, temperature=0.0).result(300)
    assert whole.prompt_logprobs == fast.generate("Once upon", max_tokens=2, prompt_logprobs=2).prompt_logprobs
    with fast.engine() as engine:
        scored = engine.submit("Once upon", max_tokens=0, prompt_logprobs=2).result(300)
        assert engine.stats.steps == 0
    assert (scored.prompt_logprobs, scored.token_ids, scored.finish_reason) == (whole.prompt_logprobs, [], "length")


def test_r13_prompt_logprobs_that_fail_leave_the_engine_alive(fast: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with checked(fast.engine()) as engine:
        monkeypatch.setattr(type(fast.model), "last_hidden_state", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit("a", prompt_logprobs=1).result(300)
        assert len(engine.submit("a", max_tokens=2, temperature=0.0).result(300).token_ids)


def test_r13_a_fault_is_of_one_request(fast: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with checked(fast.engine()) as engine:
        good, bad = (engine.submit("Once", max_tokens=20, temperature=1.0, seed=n, logprobs=0) for n in (1, 2))
        done = threading.Event()

        def spoil() -> None:
            for live in engine._core._live.values():
                if live.handle is bad:
                    monkeypatch.setattr(live.sequence, "push", lambda token: 1 / 0)
            done.set()

        engine.call(spoil).result(300)
        assert done.is_set()
        with pytest.raises(ZeroDivisionError):
            bad.result(300)
        assert len(good.result(300).token_ids) == 20
        assert engine.is_alive


def test_r13_r14_a_model_that_fails_for_one_row_fails_for_it_alone(fast: LLM) -> None:
    with checked(fast.engine()) as engine:
        logits, bad_ids = engine._core.runner.logits, fast.tokenizer.encode("x")

        def fail(model: Any, rows: Any) -> Any:
            ids = rows.token_ids
            if any(ids[at : at + len(bad_ids)] == bad_ids for at in range(len(ids))):
                raise torch.OutOfMemoryError("no memory for x")
            return logits(model, rows)

        engine._core.runner.logits = fail
        bad = engine.submit("x", max_tokens=3)
        good = [engine.submit(letter, max_tokens=3, temperature=0.0) for letter in "abc"]
        with pytest.raises(torch.OutOfMemoryError):
            bad.result(300)
        texts = [one.result(300).text for one in good]
    assert texts == [fast.generate(letter, max_tokens=3, temperature=0.0).text for letter in "abc"]


def test_r13_logits_that_are_not_finite(small_path: Path) -> None:
    llm = llamita.load(small_path, dtype="float32")
    with torch.no_grad():
        llm.model.model.norm.weight[0] = float("nan")
    with llm.engine() as engine, pytest.raises(NotFiniteError, match="damaged"):
        engine.submit("a", max_tokens=3).result(300)


def test_an_engine_that_writes_looks_for_changes_of_the_model_only_after_a_call(
    fast: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, has_changed = list[bool](), Watch.has_changed
    monkeypatch.setattr(Watch, "has_changed", lambda watch: (looks.append(has_changed(watch)), looks[-1])[1])
    fast.generate("a", max_tokens=1)  # it has its programs now
    looks.clear()
    counts = list[int]()
    with fast.engine() as engine:
        run = engine._core.runner.run

        def joined(*given: Any) -> Any:
            counts.append(len(looks))
            if len(counts) < 5:
                engine.submit("b", max_tokens=2)
            elif len(counts) == 5:
                engine.call(lambda: None)
            return run(*given)

        engine._core.runner.run = joined
        engine.submit("a", min_tokens=9, max_tokens=9).result()
    assert counts[:9] == [0, 1, 1, 1, 1, 1, 2, 2, 2]


def test_r26_a_defect_of_the_engine_reaches_everybody(fast: LLM) -> None:
    engine = fast.engine()
    engine._core.scheduler.schedule = lambda: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    handle = engine.submit("a")
    with pytest.raises(ClosedError, match="division by zero"):
        handle.result(300)
    engine._thread.join(300)
    assert not engine.is_alive
    with pytest.raises(ClosedError):
        engine.submit("b")
    engine.close()


def test_r26_a_defect_of_the_scheduler_reaches_everybody_too(fast: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, held = fast.engine(), threading.Event()
    engine.call(held.wait)
    handles = [engine.submit("a") for _ in range(3)]
    for name in ("schedule", "finish"):
        monkeypatch.setattr(engine._core.scheduler, name, lambda *_: 1 / 0)
    closer = threading.Thread(target=engine.close, args=(None,))
    closer.start()
    held.set()
    for handle in handles:
        with pytest.raises(ClosedError, match="division by zero"):
            handle.result(300)
    closer.join(300)
    assert not closer.is_alive()


def test_r22_only_so_many_requests_wait(fast: LLM) -> None:
    with fast.engine(EngineLimits(max_num_seqs=2, max_num_queued=3)) as engine:
        held = threading.Event()
        engine.call(held.wait)
        handles = [engine.submit("a", max_tokens=2) for _ in range(5)]
        with pytest.raises(OverloadedError, match="5 requests"):
            engine.submit("a")
        held.set()
        for handle in handles:
            handle.result(300)
        engine.submit("a", max_tokens=1).result(300)


def test_r25_a_request_may_take_only_so_long(fast: LLM) -> None:
    with fast.engine() as engine:
        held = threading.Event()
        engine.call(held.wait)
        handle = engine.submit("a", max_tokens=100, timeout=0.01)
        held.wait(0.05)
        held.set()
        with pytest.raises(OverdueError, match="is not over after"):
            handle.result(300)


def test_wrong_requests_are_refused_at_submission(fast: LLM) -> None:
    with fast.engine() as engine:
        for options, error in (
            ({"temperature": -1.0}, UsageError),
            ({"regex": "("}, UsageError),
            ({"num_beams": 3}, UnsupportedError),
            ({"guidance_scale": 2.0, "negative_prompt": "a"}, UnsupportedError),
            ({"max_token": 3}, UsageError),
        ):
            with pytest.raises(error):
                engine.submit("a", **options)
        with pytest.raises(UsageError):
            engine.submit([])
        assert engine.stats.waiting == 0


def test_r28_an_engine_whose_step_does_not_end_is_given_up(fast: LLM) -> None:
    held, began = threading.Event(), threading.Event()

    async def give_up() -> None:
        engine = fast.engine()
        running = engine.submit("a", max_tokens=100)
        async for _ in running:
            break
        engine.call(lambda: began.set() or held.wait())
        assert began.wait(300)
        unseen = engine.submit("a")  # which the engine's thread has not taken
        readers = [asyncio.ensure_future(one.completion()) for one in (running, unseen)]
        await asyncio.sleep(0)  # each of them waits
        assert not await asyncio.to_thread(engine.close, patience=0.01)
        found = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 300)
        assert [type(one) for one in found] == [AbortedError, AbortedError]
        held.set()
        assert engine.close()

    asyncio.run(give_up())


def test_r28_close_lets_requests_end_or_aborts_them(fast: LLM) -> None:
    engine = fast.engine()
    handle = engine.submit("a", max_tokens=50, temperature=0.0)
    engine.close(None)
    assert handle.result(0).finish_reason
    with pytest.raises(ClosedError):
        engine.submit("a")
    engine.close()
    engine = fast.engine()
    held, closer = threading.Event(), threading.Thread(target=engine.close)
    engine.call(held.wait)
    handle = engine.submit("a", max_tokens=50)
    closer.start()
    while engine._thread._commands.qsize() < 2:  # the request, and the end after it
        closer.join(0.001)
    held.set()
    closer.join(300)
    with pytest.raises(AbortedError):
        handle.result(0)


def test_nothing_waits_for_an_engine_that_has_stopped(fast: LLM) -> None:
    engine = fast.engine()
    enter = engine._enter

    def late() -> None:
        enter()
        engine.close(0.0)  # between the check and the command

    engine._enter = late
    handle = engine.submit("a")
    with pytest.raises(AbortedError):
        handle.result(300)
    with pytest.raises(AbortedError):
        engine.call(lambda: 1).result(300)
    handle.abort()
    engine = fast.engine()
    held = threading.Event()
    engine.call(held.wait)
    late_call = engine.call(lambda: 1)
    closer = threading.Thread(target=engine.close)
    closer.start()
    engine._thread._commands.put(None)
    held.set()
    closer.join(300)
    assert late_call.result(300) == 1


def test_a_caller_may_be_in_inference_mode(fast: LLM) -> None:
    options: Any = {"max_tokens": 8, "temperature": 1.0, "seed": 1, "regex": "[a-z]+"}
    expected = fast.generate("Once", **options).text
    with torch.inference_mode(), fast.engine() as engine:
        assert engine.submit("Once", **options).result(300).text == expected
    with fast.engine() as engine:
        assert engine.submit("Once", **options).result(300).text == expected


def test_engines_share_the_tables_of_their_texts(fast: LLM) -> None:
    with fast.engine() as one, fast.engine() as other:
        assert one.texts.tables is other.texts.tables


def test_rotations_by_length_are_refused(small_path: Path) -> None:
    llm = llamita.load(small_path)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    llm.model.config = replace(llm.model.config, rope_parameters=RopeConfig.from_dict(rope))
    with pytest.raises(UnsupportedError, match="dynamic"):
        llm.engine()


FORKING = """
import os, signal
import torch
import llamita
from llamita.errors import ClosedError

torch.set_num_threads(2)
llm = llamita.load(os.environ["MODEL"], dtype="bfloat16")
wanted = llm.generate("Once", max_tokens=5, temperature=0).text
engine = llm.engine()
engine.submit("Once", max_tokens=2).result(300)


def refused() -> bool:
    for ask in (engine.submit, lambda text: engine.call(lambda: text).result(30)):
        try:
            ask("Once")
        except ClosedError:
            continue
        return False
    engine.close(None)
    return True


for check in (lambda: llm.generate("Once", max_tokens=5, temperature=0).text == wanted, refused):
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    else:
        signal.alarm(60)
        os._exit(0 if check() else 1)
assert engine.submit("Once", max_tokens=2).result(300) and torch.get_num_threads() == 2
"""


def test_a_forked_process_writes_by_one_thread_and_has_no_engine(small_path: Path, zygote: Zygote) -> None:
    """OpenMP's threads and the engine's are the first process's alone: who waited for them waited for ever."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL": str(small_path)}
    assert result(zygote.start(FORKING, environment)).split() == ["0", "0"]
