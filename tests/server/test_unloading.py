"""Models that nobody asks leave the memory, stay listed, and come back with the next request."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.engine import garbage
from llamita.engine.engine import Engine
from llamita.server.served_engine import ServedEngine
from tests.server.serving import Running, serving, wait_until


@pytest.fixture
def idle(small_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that unloads its model as soon as it is idle."""
    monkeypatch.setattr(garbage, "collect", gc.collect)  # the tests have frozen libraries alone, which it would search

    def load() -> Engine:
        return llamita.load(small_path).engine()

    with serving(llamita.load(small_path), load=load, unload_after=0.0) as running:
        yield running


def engine_of(server: Running) -> ServedEngine:
    return server.model.served


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "cria", "prompt": "Once upon", "max_tokens": 5, "temperature": 0, **fields}


def test_a_model_comes_and_goes(idle: Running) -> None:
    first = idle.post("/v1/completions", completion()).json()
    wait_until(lambda: not engine_of(idle).is_loaded, "the unloading")
    assert idle.get("/health").status_code == 200
    assert idle.get("/ready").status_code == 200
    assert idle.get("/v1/models").json()["data"][0]["max_model_len"] == 128
    assert idle.metric("generation_tokens_total") == 5
    assert idle.metric("kv_blocks_total") == 0
    assert not engine_of(idle).is_loaded  # none of these has loaded it
    again = idle.post("/v1/completions", completion()).json()
    assert again["choices"] == first["choices"]
    assert idle.metric("generation_tokens_total") == 10


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "a"}),
        ("/v1/embeddings", {"model": "cria", "input": "a"}),
        ("/v1/messages/count_tokens", {"model": "cria", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses/input_tokens", {"model": "cria", "input": "a"}),
    ],
)
def test_whatever_needs_it_loads_it(idle: Running, path: str, body: dict[str, Any]) -> None:
    wait_until(lambda: not engine_of(idle).is_loaded, "the unloading")
    assert idle.post(path, body).status_code == 200


def test_r36_a_crowd_loads_it_once_and_is_not_cut_off(idle: Running) -> None:
    wait_until(lambda: not engine_of(idle).is_loaded, "the unloading")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: idle.post("/v1/completions", completion(max_tokens=60, seed=n)), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


def test_without_a_limit_nothing_is_unloaded(server: Running) -> None:
    assert server.server.state.settings.unload_after is None
    assert engine_of(server).is_loaded
