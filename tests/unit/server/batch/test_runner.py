"""A batch is answered by the server's own application, with as many requests at once as there are seats."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.engine.limits import EngineLimits
from llamita.errors import UsageError
from llamita.server.app import create_app
from llamita.server.batch import runner
from llamita.server.batch.client import post
from llamita.server.batch.input import BadLine, BatchRequest, read_input
from llamita.server.batch.output import BatchOutput
from llamita.server.models import ServedModel, served_models

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "logprobs": True},
    "/v1/completions": {"prompt": "Once", "max_tokens": 5, "n": 2, "logprobs": 1},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 5},
}
OF_THE_MOMENT = {"id", "created", "created_at", "completed_at", "timings"}


@pytest.fixture(scope="module")
def model(small_path: Path) -> Iterator[ServedModel]:
    limits = EngineLimits(max_num_seqs=2, max_num_queued=runner.most_queued(2))
    with llamita.load(small_path).engine(limits) as engine:
        yield served_models("m", engine)[0]


def entries(*requests: tuple[str, Any]) -> list[BatchRequest | BadLine]:
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body}).encode()
        for number, (url, body) in enumerate(requests)
    ]
    return read_input(lines, "in")


def answers(given: list[BatchRequest | BadLine], model: ServedModel, path: Path) -> dict[str, dict[str, Any]]:
    """The lines of the output, by custom_id."""
    output = BatchOutput.open(path, {entry.id for entry in given})
    runner.Expected.of(given, output).check([model])
    runner.answer_all(given, [model], output, lambda: None)
    output.close()
    return {fields["custom_id"]: fields for fields in map(json.loads, path.read_bytes().splitlines())}


def lasting(value: Any) -> Any:
    """An answer without what differs from one time to the next."""
    if isinstance(value, dict):
        return {name: lasting(one) for name, one in value.items() if name not in OF_THE_MOMENT}
    return [lasting(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("url", BODIES)
def test_an_answer_is_the_servers(model: ServedModel, tmp_path: Path, url: str) -> None:
    body = {"model": "m", **BODIES[url], **({} if url == "/v1/embeddings" else {"temperature": 1.0})}
    body |= {} if url == "/v1/embeddings" else {"seed": 7}
    given = entries((url, body), (url, {**body, "model": 7}), (url, {"model": "m"}))
    found = answers(given, model, tmp_path / "out")
    for entry in given:
        assert isinstance(entry, BatchRequest)
        answer = asyncio.run(post(create_app([model]), url, entry.body, "x"))
        line = found[entry.custom_id]
        assert line["response"]["status_code"] == answer.status
        assert line["response"]["request_id"] == line["id"] == entry.id
        ours, theirs = lasting(line["response"]["body"]), lasting(json.loads(answer.body))
        for one in (ours, theirs):  # the second time, the prompt is cached
            one.get("usage", {}).pop("prompt_tokens_details", None)
            one.get("usage", {}).pop("input_tokens_details", None)
        assert ours == theirs
    assert [found[str(number)]["response"]["status_code"] for number in range(3)] == [200, 400, 400]


def test_no_more_at_once_than_seats_and_some_and_none_is_refused(model: ServedModel, tmp_path: Path) -> None:
    body = {"model": "m", "prompt": "a", "n": 8, "max_tokens": 3, "seed": 1}
    given = entries(*[("/v1/completions", body)] * 12)
    most = 0

    def note() -> None:
        nonlocal most
        most = max(most, model.served.in_flight)

    output = BatchOutput.open(tmp_path / "out", {entry.id for entry in given})
    runner.answer_all(given, [model], output, note)
    output.close()
    assert (len(output.done.ids), output.done.failed) == (12, 0)
    assert 0 < most <= 8 * runner.in_flight(2)
    assert model.served.in_flight == 0


def test_what_is_done_is_not_asked_again(model: ServedModel, tmp_path: Path) -> None:
    given = entries(
        *[("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": n, "seed": 1}) for n in (1, 2, 3)]
    )
    first = answers(given[:1], model, tmp_path / "out")
    both = answers(given, model, tmp_path / "out")
    assert both["0"] == first["0"]
    assert sorted(both) == ["0", "1", "2"]


def test_other_models(model: ServedModel, tmp_path: Path) -> None:
    given = entries(("/v1/completions", {"model": "gpt", "prompt": "a"}))
    output = BatchOutput.open(tmp_path / "out", [])
    with pytest.raises(UsageError, match=r"line 1 asks for the model 'gpt', here is m: .*--alias"):
        runner.Expected.of(given, output).check([model])
    output.done.fingerprints.add("fp_other")
    with pytest.raises(UsageError, match="answers of another model"):
        runner.Expected.of([], output).check([model])
    output.close()


def test_an_engine_that_has_stopped_answers_nothing(small_path: Path, tmp_path: Path) -> None:
    (model,) = served_models("m", llamita.load(small_path).engine())
    model.engine.close()
    given = entries(("/v1/completions", {"model": "m", "prompt": "a"}))
    assert answers(given, model, tmp_path / "out") == {}
