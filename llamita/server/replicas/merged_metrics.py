"""What several processes show at /metrics, as one text."""

from collections.abc import Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families


def merged(texts: Mapping[str, str]) -> bytes:
    """Prometheus' text of several processes, each sample with the process' name as its label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for one in text_string_to_metric_families(text):
            family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
            family.samples += [sample._replace(labels={**sample.labels, "replica": replica}) for sample in one.samples]
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families:
    """A collector of what there is."""

    def __init__(self, families: Collection[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
