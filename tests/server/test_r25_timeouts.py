"""R20, R25: requests, bodies and readers that take too long."""

import json
import socket
import time
from typing import Any

import anthropic
import pytest

from llamita.engine.limits import EngineLimits
from llamita.engine.runner import StepRunner
from llamita.llm import LLM
from tests.server.serving import chat, connected, raw_request, serving, wait_until

ENDLESS = {"temperature": 1, "logit_bias": {"2041": -100, "2045": -100, "2046": -100}}


def test_r25_a_request_that_takes_too_long_ends_with_an_error(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(cria, request_timeout=0.0) as server:
        monkeypatch.setattr(time, "time", lambda: 0.0)  # the wall clock has no say
        whole = server.post("/v1/chat/completions", chat(**ENDLESS))
        assert (whole.status_code, whole.json()["error"]["type"]) == (408, "timeout_error")
        assert whole.headers["x-should-retry"] == "false"
        streamed = server.post("/v1/chat/completions", chat(**ENDLESS, stream=True))
        *_, error, done, end = streamed.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "timeout_error"
        response = server.post("/v1/responses", {"model": "cria", "input": "Hello", "stream": True})
        names = [line for line in response.text.splitlines() if line.startswith("event: ")]
        assert names[-2:] == ["event: response.failed", "event: error"]
        wait_until(lambda: server.metric("requests_aborted_total", reason="timeout") == 3, "three are counted")


@pytest.mark.parametrize("is_stream", [False, True])
def test_r25_a_message_that_takes_too_long_ends_with_an_error(is_stream: bool, cria: LLM) -> None:
    with (
        serving(cria, request_timeout=0.01) as running,
        anthropic.Anthropic(base_url=running.address, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        bias = {str(token_id): -100 for token_id in cria.tokenizer.eos_token_ids}
        answer = client.messages.create(
            model="cria",
            max_tokens=400,
            messages=[{"role": "user", "content": "Hello"}],
            stream=is_stream,
            extra_body={"logit_bias": bias},
        )
        assert not isinstance(answer, anthropic.types.Message)
        list(answer)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "timeout_error")


def test_r25_a_text_that_waits_too_long_for_its_turn_is_sent_away(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run = StepRunner.run
    monkeypatch.setattr(StepRunner, "run", lambda *given: (time.sleep(0.01), run(*given))[1])  # a large model's
    limits = EngineLimits(max_num_seqs=1, max_num_batched_tokens=64)
    with serving(cria, limits=limits, queue_timeout=0.2) as server, connected(server.port) as first:
        first.sendall(raw_request("/v1/chat/completions", chat(**ENDLESS)))
        wait_until(lambda: server.model.engine.stats.running == 1, "the first")
        held = [server.post("/v1/chat/completions", chat(max_tokens=1, stream=stream)) for stream in (False, True)]
        assert server.model.engine.stats.running == 1  # it is not its turn that took long
    whole, streamed = held
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "queue_timeout")
    assert (whole.headers["retry-after"], whole.headers["x-should-retry"]) == ("1", "true")
    assert '"code":"queue_timeout"' in streamed.text


def test_r25_a_body_that_does_not_come_is_not_waited_for(cria: LLM) -> None:
    with serving(cria, body_timeout=0.1) as server, connected(server.port) as connection:
        connection.sendall(raw_request("/v1/chat/completions", chat())[:-5])
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_r20_a_client_that_takes_nothing_is_cut_off(cria: LLM) -> None:
    with serving(cria, send_timeout=0.2) as server, connected(server.port) as connection:
        many = chat(**ENDLESS, n=8, max_tokens=450, stream=True, logprobs=True, top_logprobs=20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(raw_request("/v1/chat/completions", many))
        wait_until(lambda: server.in_flight == 8, "the request")
        wait_until(lambda: server.in_flight == 0, "its end")
        assert server.metric("requests_aborted_total", reason="disconnect") > 0
        assert server.post("/v1/chat/completions", chat(max_tokens=2)).status_code == 200
