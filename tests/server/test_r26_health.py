"""R26, R27: health tells the truth while an engine works, hangs, and is dead."""

import threading
from typing import Any

import pytest

from llamita.engine.limits import EngineLimits
from llamita.engine.runner import StepRunner
from llamita.llm import LLM
from tests.server.serving import chat, connected, raw_request, serving, wait_until

ENDLESS = {"temperature": 1, "logit_bias": {"2041": -100, "2045": -100, "2046": -100}}  # no end token


def test_r26_a_stalled_engine_is_unhealthy_until_it_moves(cria: LLM) -> None:
    with serving(cria, stall_timeout=0.2) as server:
        assert server.get("/health").status_code == 200
        hold = threading.Event()
        with connected(server.port) as connection:
            connection.sendall(raw_request("/v1/chat/completions", chat(**ENDLESS)))
            wait_until(lambda: server.model.engine.stats.running == 1, "a running request")
            server.model.engine.call(lambda: hold.wait(300))
            wait_until(lambda: server.get("/health").status_code == 503, "an unhealthy server")
            assert "no step" in server.get("/ready").json()["reason"]
            assert server.get("/v1/models").status_code == 200  # the front end lives
            hold.set()
            wait_until(lambda: server.get("/health").status_code == 200, "a healthy server")


def test_r26_an_engine_that_was_idle_has_not_stalled(cria: LLM) -> None:
    with cria.engine() as engine:
        engine._core.last_step -= 1000
        ages: list[float] = []
        handle = engine.submit("Once upon a time", max_tokens=5, temperature=0)
        while not handle.is_over:
            ages.append(engine.stats.step_age)
        assert max(ages, default=0) < 500


def test_r27_a_long_prompt_holds_up_no_other_answer(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those who watch over the server; and the event loop is not the engine's thread."""
    reading, seen = threading.Event(), threading.Event()
    run = StepRunner.run

    def slowly(*given: Any) -> Any:
        reading.set()
        seen.wait(300)  # a step that lasts as long as the others ask
        return run(*given)

    with serving(cria, limits=EngineLimits(max_num_batched_tokens=64)) as server, connected(server.port) as connection:
        monkeypatch.setattr(StepRunner, "run", slowly)
        connection.sendall(raw_request("/v1/completions", {"model": "cria", "prompt": [300] * 400, "max_tokens": 1}))
        assert reading.wait(300)
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/"):
            assert server.get(path).status_code == 200
        assert server.post("/tokenize", {"prompt": "a"}).status_code == 200
        assert (server.in_flight, server.model.engine.stats.running) == (1, 1)
        seen.set()
        assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False])
def test_r26_a_dead_engine_ends_its_requests_and_the_server(
    cria: LLM, path: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(cria) as server:
        engine = server.model.engine

        def fail(*_: object) -> None:
            raise SystemError("a defect")

        monkeypatch.setattr(engine._core.scheduler, "schedule", fail)
        answer = server.post(path, chat(stream=stream, max_tokens=5))
        assert answer.status_code == (200 if stream else 503)
        assert "the engine has failed" in answer.text
        wait_until(lambda: server.server.should_exit, "the end of the server")
    assert server.server.exit_code == 1
