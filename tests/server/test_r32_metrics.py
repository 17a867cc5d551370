"""R32: metrics that any Prometheus reads, that only grow, and whose labels no client can make up."""

from prometheus_client.parser import text_string_to_metric_families

from llamita.llm import LLM
from tests.server.serving import Running, chat, serving


def scraped(server: Running) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    families = list(text_string_to_metric_families(server.get("/metrics").text))
    assert len({family.name for family in families}) == len(families)
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_r32_counts_are_right_and_gauges_come_back(cria: LLM) -> None:
    with serving(cria) as server:
        before = scraped(server)
        answers = [server.post("/v1/chat/completions", chat(max_tokens=most)) for most in (1, 3, 200)]
        server.post("/v1/completions", {"model": "cria", "prompt": "Once", "n": 2, "max_tokens": 2})
        after = scraped(server)
        finished = after["llamita:request_success_total"]
        assert sum(finished.values()) == 5
        assert {dict(labels)["finished_reason"] for labels in finished} == {"stop", "length"}
        usage = [answer.json()["usage"] for answer in answers]
        written = sum(one["completion_tokens"] for one in usage) + 4
        (total,) = after["llamita:generation_tokens_total"].values()
        assert total == written
        assert list(after["llamita:request_generation_tokens_sum"].values()) == [written]
        assert list(after["llamita:time_to_first_token_seconds_count"].values()) == [5]
        for name in ("num_requests_running", "num_requests_waiting"):
            assert list(after[f"llamita:{name}"].values()) == [0]
        for name, samples in before.items():
            if name.endswith(("_total", "_count", "_bucket")):
                assert all(after[name][labels] >= value for labels, value in samples.items())


def test_r32_clients_add_no_labels(cria: LLM) -> None:
    with serving(cria) as server:
        for number in range(30):
            server.post("/v1/chat/completions", {**chat(), "model": f"model-{number}"})
            server.get(f"/path/{number}")
            server.get(f"/v1/models/model-{number}")
        requests = scraped(server)["llamita:http_requests_total"]
        handlers = {dict(labels)["handler"] for labels in requests}
        assert handlers == {"/v1/chat/completions", "other", "/v1/models/{model:path}"}
