"""R13: what fails within a step for one request is the error of that one, in its dialect; the others are written."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamita.engine.engine_core import EngineCore
from llamita.engine.live import LiveRequest
from llamita.llm import LLM
from tests.server.serving import Running, chat, serving, wait_until

SPOILT = 7  # the priority of the request that is to fail
BODY: dict[str, Any] = {"model": "cria", "priority": SPOILT, "regex": "[a-z ]{20}", "temperature": 1}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat("Hello") | BODY,
    "/v1/completions": {**BODY, "prompt": "Hello"},
    "/v1/responses": {**BODY, "input": "Hello"},
    "/v1/messages": chat("Hello", max_tokens=20) | BODY,
}

# How the event begins by which a stream that fails ends; [DONE] follows in OpenAI's older dialect.
ENDS = {
    "/v1/chat/completions": 'data: {"error":{"message":',
    "/v1/completions": 'data: {"error":{"message":',
    "/v1/responses": 'event: error\ndata: {"type":"error"',
    "/v1/messages": 'event: error\ndata: {"type":"error","error":{"type":"api_error"',
}


def fail(*_: object) -> Any:
    raise RuntimeError("0x7f00 /home/secret")


def sampler(live: LiveRequest) -> None:
    live.sampler.processors = (fail, *live.sampler.processors)


def mask(live: LiveRequest) -> None:
    live.sequence.constraint.mask = fail  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def grammar(live: LiveRequest) -> None:
    live.sequence.constraint.accept = fail  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def detokenizer(live: LiveRequest) -> None:
    live.sequence._decoder.push = fail  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def spoiling(cria: LLM) -> Iterator[tuple[Running, list[Callable[[LiveRequest], None]]]]:
    """A server, and what it does to the requests of one priority before they begin."""
    spoils: list[Callable[[LiveRequest], None]] = []
    add = EngineCore.add

    def spoilt(core: EngineCore, live: LiveRequest) -> None:
        if live.request.priority == SPOILT:
            spoils[-1](live)
        add(core, live)

    with pytest.MonkeyPatch.context() as patched, serving(cria) as server:
        patched.setattr(EngineCore, "add", spoilt)
        yield server, spoils


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spoil", [sampler, mask, grammar, detokenizer], ids=lambda one: one.__name__)
def test_r13_a_fault_is_the_error_of_one_request(
    spoiling: Any, path: str, spoil: Callable[[LiveRequest], None], caplog: pytest.LogCaptureFixture
) -> None:
    server, spoils = spoiling
    spoils.append(spoil)

    def beside(number: int) -> str:
        body = chat(f"Text {number}.", max_tokens=8, seed=number, temperature=1)
        return server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]

    expected = [beside(number) for number in range(3)]
    succeeded = server.metric("request_success_total")
    with ThreadPoolExecutor(5) as pool:
        whole, streamed = (pool.submit(server.post, path, PATHS[path] | {"stream": stream}) for stream in (False, True))
        assert list(pool.map(beside, range(3))) == expected
    check(whole.result(), 500)
    check(streamed.result(), 200)
    wait_until(lambda: server.in_flight == 0, "the end of all")
    stats = server.model.engine.stats
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.blocks)
    assert server.metric("request_success_total") - succeeded == 3
    assert server.get("/health").status_code == 200
    assert "/home/secret" in caplog.text  # the operator can read it


def check(answer: Any, status: int) -> None:
    """An error that tells the client its id and nothing else, once, at the end."""
    assert answer.status_code == status, answer.text
    assert "secret" not in answer.text
    assert "0x7f00" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    if status == 500:
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["type"] in ("server_error", "api_error")
        return
    assert answer.text.endswith("\n\n")
    *_, event, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert (last == "data: [DONE]") == ENDS[answer.request.url.path].startswith("data: ")
    error = event if last == "data: [DONE]" else last
    assert error.startswith(ENDS[answer.request.url.path])
