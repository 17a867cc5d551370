"""R14: a step that finds no memory is repeated by smaller ones; a request that finds none at all fails alone."""

import resource
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llamita.cli.main import main
from llamita.llm import LLM
from tests.server.serving import Running, chat, serving, wait_until


@pytest.fixture
def short(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server, and how to let its passes fail: by a function of the rows of a pass."""
    with serving(cria) as server:
        runner = server.model.engine._core.runner
        run = runner.logits

        def limit(fails: Callable[[int], bool], error: type[BaseException] = torch.OutOfMemoryError) -> None:
            def passed(model: Any, rows: Any) -> Any:
                if fails(len(rows.counts)):
                    raise error("no memory left at 0x7f00")
                return run(model, rows)

            monkeypatch.setattr(runner, "logits", passed)

        yield server, limit


def ask(server: Running, count: int) -> list[Any]:
    def one(number: int) -> Any:
        return server.post("/v1/chat/completions", chat(f"Text {number}.", max_tokens=5))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def text_of(answer: Any) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def test_r14_one_failure_is_got_over(short: Any) -> None:
    server, limit = short
    expected = [text_of(answer) for answer in ask(server, 4)]
    failed: list[int] = []
    limit(lambda parts: parts > 1 and not failed and failed.append(parts) is None)
    held = threading.Event()
    server.model.engine.call(held.wait)  # so that all of them are in one pass
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, 4)
        wait_until(lambda: server.in_flight == 4, "the requests")
        held.set()
        answers = asked.result()
    assert failed
    assert [text_of(answer) for answer in answers] == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_r14_no_memory_at_all_is_503_and_the_engine_goes_on(short: Any, error: type[BaseException]) -> None:
    server, limit = short
    limit(lambda _: True, error)
    for answer in ask(server, 3):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        assert answer.headers["retry-after"]
        assert "0x7f00" not in answer.text
    streamed = server.post("/v1/chat/completions", chat(stream=True))
    assert '"code":"out_of_memory"' in streamed.text
    limit(lambda _: False)
    assert [answer.status_code for answer in ask(server, 3)] == [200] * 3
    stats = server.model.engine.stats
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.blocks)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 200 MB beyond what the process has reserved."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    reserved = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (reserved + (200 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to the limit")
def test_r14_a_server_that_has_no_memory_to_start_says_so(
    small_path: Path, little_memory: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--port", "0", "-m", str(small_path), "--kv-blocks", "100000"]  # 1.6 GB
    assert main(words) == 5
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "a cache of 100000 blocks of 16 tokens does not fit the memory" in sentence


def test_r14_a_request_for_which_no_thread_starts_leaves_its_place(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with serving(cria) as server:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
        for path, body in (("/v1/chat/completions", chat()), ("/tokenize", {"prompt": "a"})):
            answer = server.post(path, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        monkeypatch.undo()
        assert server.in_flight == 0
        assert server.post("/v1/chat/completions", chat(max_tokens=1)).status_code == 200
