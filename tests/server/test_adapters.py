"""Adapters by their names: listed, asked for, and answering as the model loaded with each of them alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

import llamita
from llamita.adapters.files import adapter_digest
from llamita.engine.receipt import Receipt, differences, replay
from llamita.generation.text_options import TextModel
from tests.server.serving import Running, serving

NAMES = ("cria", "one", "two")


@pytest.fixture(scope="module")
def adapted(small_path: Path, adapter: Path, other_adapter: Path) -> Iterator[Running]:
    """A server of the small model with two adapters, called cria."""
    llm = llamita.load(small_path, dtype="bfloat16", adapters={"one": adapter, "two": other_adapter})
    with serving(llm) as running:
        yield running


def completion(name: str, **fields: Any) -> dict[str, Any]:
    return {"model": name, "prompt": "Once upon", "max_tokens": 12, "temperature": 1, **fields}


def test_adapters_are_listed_with_their_model(adapted: Running) -> None:
    with openai.OpenAI(base_url=f"{adapted.address}/v1", api_key="none") as client:
        models = client.models.list().data
        assert client.models.retrieve("two").id == "two"
    assert [model.id for model in models] == list(NAMES)
    assert [model.model_dump()["parent"] for model in models] == [None, "cria", "cria"]
    assert adapted.get("/ready").status_code == 200


def test_r36_the_answers_of_a_crowd_are_those_of_each_adapter_alone(
    adapted: Running, small_path: Path, adapter: Path, other_adapter: Path
) -> None:
    folders = dict(zip(NAMES, (None, adapter, other_adapter), strict=True))

    def ask(number: int) -> dict[str, Any]:
        return adapted.post("/v1/completions", completion(NAMES[number % 3], seed=number // 3, receipt=True)).json()

    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(ask, range(18)))
    alone = {name: llamita.load(small_path, dtype="bfloat16", adapter=folder) for name, folder in folders.items()}
    for number, answer in enumerate(answers):
        name = NAMES[number % 3]
        assert answer["model"] == name
        own, receipt = alone[name], Receipt.from_dict(answer["receipts"][0])
        texts = TextModel(own.model, own.tokenizer, adapter=own.adapter)
        written, again = replay(receipt, texts, own.tokenizer.encode("Once upon"))
        assert (written.text, differences(receipt, again)) == (answer["choices"][0]["text"], [])
        folder = folders[name]
        assert receipt.facts.adapter == (None if folder is None else adapter_digest(folder))


def test_each_has_a_fingerprint_and_a_name_in_the_metrics(adapted: Running) -> None:
    before = {name: adapted.metric("request_success_total", model_name=name) for name in NAMES}
    answers = [adapted.post("/v1/completions", completion(name)).json() for name in NAMES]
    assert len({answer["system_fingerprint"] for answer in answers}) == 3
    assert all(adapted.metric("request_success_total", model_name=name) == before[name] + 1 for name in NAMES)
    assert adapted.metric("kv_blocks_total", model_name="one") == 0  # the engine is the model's


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"])
def test_every_endpoint_knows_them(adapted: Running, path: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    fields = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 8, "temperature": 0},
        "/v1/messages": {"messages": messages, "max_tokens": 8, "temperature": 0},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 8, "temperature": 0},
        "/v1/embeddings": {"input": "Hi"},
    }[path]
    answers = [adapted.post(path, {"model": name, **fields}) for name in NAMES]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} == set(NAMES)
    contents = [
        {key: answer.json().get(key) for key in ("choices", "content", "data")}
        | {"output": [item["content"][0]["text"] for item in answer.json().get("output", [])]}
        for answer in answers
    ]
    assert contents[0] != contents[1] != contents[2] != contents[0]


def test_an_unknown_one_is_404_and_names_those_there_are(adapted: Running) -> None:
    answer = adapted.post("/v1/completions", completion("three"))
    assert answer.status_code == 404
    assert "the models are cria, one, two" in answer.json()["error"]["message"]
