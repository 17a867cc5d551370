"""The metrics of several processes are told apart by a label, and are valid as one text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llamita.server.replicas.merged_metrics import merged


def text_of(count: int, *, has_gauge: bool = False) -> str:
    registry = CollectorRegistry()
    Counter("llamita:steps", "steps", ("model",), registry=registry).labels("m").inc(count)
    Histogram("llamita:seconds", "times", buckets=(1.0, 2.0), registry=registry).observe(count)
    if has_gauge:
        Gauge("llamita:free", "blocks", registry=registry).set(7)
    return generate_latest(registry).decode()


def test_merged() -> None:
    text = merged({"0": text_of(3), "1": text_of(1, has_gauge=True), "2": ""}).decode()
    assert text.count("# TYPE llamita:steps_total counter") == 1
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found = {(one.name, *sorted(one.labels.items())): one.value for one in samples}
    assert len(found) == len(samples)
    assert found["llamita:steps_total", ("model", "m"), ("replica", "0")] == 3
    assert found["llamita:steps_total", ("model", "m"), ("replica", "1")] == 1
    assert found["llamita:free", ("replica", "1")] == 7
    assert found["llamita:seconds_bucket", ("le", "1.0"), ("replica", "0")] == 0
    assert found["llamita:seconds_bucket", ("le", "1.0"), ("replica", "1")] == 1
