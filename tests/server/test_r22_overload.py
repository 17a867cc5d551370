"""R22: a full queue answers at once, and nothing is tokenized for those who are sent away."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from llamita.engine.limits import EngineLimits
from llamita.llm import LLM
from tests.server.serving import chat, serving, wait_until

RUNNING, QUEUED, ASKED = 2, 4, 40


def test_r22_overload_is_refused_and_passes(cria: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = EngineLimits(max_num_seqs=RUNNING, max_num_queued=QUEUED, max_num_batched_tokens=64)
    tokenized: list[Any] = []
    held = threading.Event()
    real: Callable[..., Any] = cria.tokenizer.encode_parts

    def counted(parts: Any) -> Any:
        tokenized.append(parts)
        held.wait(60)
        return real(parts)

    with serving(cria, limits=limits) as server:
        monkeypatch.setattr(type(cria.tokenizer), "encode_parts", lambda _, parts: counted(parts))
        answers: list[Any] = []

        def ask() -> None:
            answers.append(server.post("/v1/chat/completions", chat(max_tokens=2)))

        threads = [threading.Thread(target=ask) for _ in range(ASKED)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == ASKED - RUNNING - QUEUED, "the refusals")
        assert server.get("/ready").status_code == 503
        assert server.get("/health").status_code == 200
        refused = list(answers)
        held.set()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in refused} == {429}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        assert [answer.status_code for answer in answers if answer not in refused] == [200] * (RUNNING + QUEUED)
        assert len(tokenized) == RUNNING + QUEUED
        assert server.get("/ready").status_code == 200
        assert server.metric("requests_rejected_total", reason="queue_full") == ASKED - RUNNING - QUEUED
