"""What /metrics shows: vLLM's names after our prefix, where they mean the same."""

from collections.abc import Callable, Collection, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llamita.engine.handle import RequestHandle
from llamita.engine.stats import EngineStats
from llamita.errors import AbortedError, ClosedError, OverdueError, QueueTimeoutError
from llamita.server.served_engine import ServedEngine

PREFIX = "llamita:"
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 100_000)
# Histogram -> what it measures of a request; all from one monotonic clock.
TIMES = {
    "time_to_first_token_seconds": "from the request to its first token",
    "request_time_per_output_token_seconds": "between two tokens, on average over a request",
    "e2e_request_latency_seconds": "from the request to its last token",
    "request_queue_time_seconds": "from the request to its first step",
    "request_prefill_time_seconds": "from the first step to the first token",
    "request_decode_time_seconds": "from the first token to the last",
}
Value = Callable[[EngineStats], float]
GAUGES: dict[str, tuple[str, Value]] = {
    "num_requests_running": ("texts that are written now", lambda stats: stats.running),
    "num_requests_waiting": ("texts that wait", lambda stats: stats.waiting),
    "kv_cache_usage_perc": (
        "share of the cache's blocks that texts hold, from 0 to 1",
        lambda stats: 1 - stats.free_blocks / max(1, stats.blocks),
    ),
    "kv_blocks_total": ("blocks of the cache", lambda stats: stats.blocks),
    "kv_blocks_free": ("blocks that no text holds", lambda stats: stats.free_blocks),
    "kv_blocks_cached": ("blocks whose tokens can be found again", lambda stats: stats.cached_blocks),
    "engine_last_step_age_seconds": ("time since the last step of a busy engine", lambda stats: stats.step_age),
}
COUNTERS: dict[str, tuple[str, Value]] = {
    "engine_step": ("steps of the engine", lambda stats: stats.steps),
    "num_preemptions": ("times that a text had to give up its blocks", lambda stats: stats.preemptions),
    "prompt_tokens": ("tokens read", lambda stats: stats.prompt_tokens),
    "generation_tokens": ("tokens written", lambda stats: stats.generation_tokens),
    "spec_decode_num_draft_tokens": ("draft tokens", lambda stats: stats.draft_tokens),
    "spec_decode_num_accepted_tokens": ("draft tokens that were written", lambda stats: stats.accepted_tokens),
    "prefix_cache_queries": ("prompt tokens looked for in the cache", lambda stats: stats.prompt_tokens),
    "prefix_cache_hits": ("prompt tokens found in it", lambda stats: stats.cached_prompt_tokens),
}


class Metrics:
    """Counters and histograms of one server, in a registry of its own; labels are only what the server named."""

    def __init__(self, engines: Collection[ServedEngine]) -> None:
        self.registry = CollectorRegistry()
        self._success = self._counter("request_success", "finished texts", ("model_name", "finished_reason"))
        self._aborted = self._counter("requests_aborted", "texts that did not finish", ("model_name", "reason"))
        self._rejected = self._counter("requests_rejected", "requests that were refused", ("reason",))
        self._http = self._counter("http_requests", "HTTP requests", ("handler", "method", "status"))
        self._times = {name: self._histogram(name, what, SECONDS) for name, what in TIMES.items()}
        self._prompt = self._histogram("request_prompt_tokens", "tokens of a prompt", TOKENS)
        self._generation = self._histogram("request_generation_tokens", "tokens of an answer", TOKENS)
        self.loop_lag = Histogram(
            f"{PREFIX}event_loop_lag_seconds", "how late the event loop is", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_EngineCollector(engines))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def count_http(self, handler: str, method: str, status: int) -> None:
        """Count an HTTP request; handler: the path of the route, never one that a client made up."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._http.labels(handler, known, str(status)).inc()

    def count_rejected(self, reason: str) -> None:
        """Count a request that was refused."""
        self._rejected.labels(reason).inc()

    def count_disconnected(self, model: str, count: int) -> None:
        """Count texts whose client left before they had been handed to the engine."""
        self._aborted.labels(model, "disconnect").inc(count)

    def observe(self, model: str, handle: RequestHandle) -> None:
        """Count a text that is over or is about to be given up."""
        if not handle.is_over:
            self._aborted.labels(model, "disconnect").inc()
            return
        try:
            completion = handle.result()
        except Exception as error:
            self._aborted.labels(model, _reason(error)).inc()
            return
        self._success.labels(model, completion.finish_reason or "none").inc()
        self._prompt.labels(model).observe(completion.usage.prompt_tokens)
        self._generation.labels(model).observe(completion.usage.completion_tokens)
        for name, seconds in _seconds(handle, completion.usage.completion_tokens):
            self._times[name].labels(model).observe(seconds)

    def _counter(self, name: str, what: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"{PREFIX}{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(f"{PREFIX}{name}", what, ("model_name",), buckets=tuple(buckets), registry=self.registry)


class _EngineCollector:
    """Reads the engines' own counts when they are asked for."""

    def __init__(self, engines: Collection[ServedEngine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        stats = [(engine.name, engine.stats) for engine in self._engines]
        for family, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (what, value) in table.items():
                metric = family(f"{PREFIX}{name}", what, labels=("model_name",))
                for engine, own in stats:
                    metric.add_metric((engine,), value(own))
                yield metric


def _seconds(handle: RequestHandle, tokens: int) -> Iterator[tuple[str, float]]:
    times = handle.metrics
    if times.scheduled is None or times.first_token is None or times.finished is None:
        return
    decode = times.finished - times.first_token
    yield "time_to_first_token_seconds", times.first_token - times.arrival
    yield "e2e_request_latency_seconds", times.finished - times.arrival
    yield "request_queue_time_seconds", times.scheduled - times.arrival
    yield "request_prefill_time_seconds", times.first_token - times.scheduled
    yield "request_decode_time_seconds", decode
    if tokens > 1:
        yield "request_time_per_output_token_seconds", decode / (tokens - 1)


def _reason(error: Exception) -> str:
    if isinstance(error, OverdueError | QueueTimeoutError):
        return "timeout"
    return "shutdown" if isinstance(error, AbortedError | ClosedError) else "error"
