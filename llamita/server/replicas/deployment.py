"""Replicas of the server on Ray Serve, in processes of this machine or of a cluster, and their one application."""

# pyright: reportMissingImports=false
# Ray is an extra, which the tools of development do not have.
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message

from llamita.errors import ClosedError, LlamitaError, OverloadedError, UnsupportedError
from llamita.server import log
from llamita.server.app import create_app, middleware, paths_of
from llamita.server.health import METRICS_TYPE, trouble
from llamita.server.metrics import Metrics
from llamita.server.models import ModelSummary, ServedModel
from llamita.server.ray_cluster import cause, cluster
from llamita.server.replicas.forwarding import ForwardedRequest, Forwarder, Pieces, answer
from llamita.server.replicas.merged_metrics import merged
from llamita.server.replicas.prefix import ranked
from llamita.server.settings import ServerSettings

try:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import RequestRouterConfig
    from ray.serve.exceptions import BackPressureError, RayServeException
    from ray.serve.handle import DeploymentHandle
    from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
except ImportError:
    raise UnsupportedError("--replicas needs Ray Serve: pip install 'llamita[scale]'") from None

NAME = "llamita"
STORE_BYTES = 80_000_000  # of Ray's object store, which small messages do not use
QUIET = {"log_level": "WARNING", "enable_access_log": False}
CLOSING = 5.0  # seconds that Ray may take to stop a replica whose answers are over


class PrefixRouter(RequestRouter):
    """Ray Serve's request router by the beginning of prompts; slack: as of `prefix.ranked`."""

    def initialize_state(self, slack: int) -> None:
        """Take what the deployment's configuration says."""
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas by rank, one in each: the next is asked where the one before it takes no more."""
        given = pending_request.args[0] if pending_request is not None and pending_request.args else None
        request = given if isinstance(given, ForwardedRequest) else ForwardedRequest({}, b"", "")
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if request.replica is not None and replicas:
            return [[replicas[sorted(replicas)[request.replica % len(replicas)]]]]
        cache = self.replica_queue_len_cache
        in_flight = {name: cache.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name]] for name in ranked(request.prefix, list(replicas), in_flight, self._slack)]


class Replica:
    """One process with the models and the server's own application, which answers what is forwarded to it."""

    def __init__(self, load: Callable[[], list[ServedModel]], settings: ServerSettings, log_level: str) -> None:
        log.set_up(log_level)
        self._app = create_app(load(), settings)

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """The pieces of an answer."""
        async for messages in answer(self._app, request):
            yield messages

    def facts(self) -> tuple[list[ModelSummary], set[str]]:
        """What is to be said of the models, and the paths of the application."""
        return [ModelSummary.of(model) for model in self._app.state.server.models], paths_of(self._app)

    def metrics(self, _: ForwardedRequest) -> tuple[str, str]:
        """This replica's name and its metrics; the request is what it was chosen by."""
        return serve.get_replica_context().replica_id.unique_id, self._app.state.server.metrics.text().decode()

    def check_health(self) -> None:
        """Raise where an engine has stopped or makes no step: Ray then starts another replica."""
        if (found := trouble(self._app.state.server)) is not None:
            raise ClosedError(found)


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """How many replicas, and what each takes: requests at once, and waiting; CPUs and GPUs of Ray's count."""

    count: int
    max_num_seqs: int
    max_num_queued: int
    num_gpus: int = 0


@contextlib.contextmanager
def running(
    load: Callable[[], list[ServedModel]], settings: ServerSettings, options: ReplicaOptions, log_level: str = "warning"
) -> Iterator["Replicas"]:
    """Replicas that run for a while: in the cluster that RAY_ADDRESS names, or in one that is started here.

    load: pickled, and called in each. Raises AccessError, LlamitaError and what loading raises.
    """
    with cluster(options.count, STORE_BYTES) as is_own:
        try:
            yield Replicas(_deployed(load, settings, options, log_level), settings, count=options.count)
        finally:
            if not is_own:
                serve.delete(NAME)


def _deployed(
    load: Callable[[], list[ServedModel]], settings: ServerSettings, options: ReplicaOptions, log_level: str
) -> DeploymentHandle:
    deployment = serve.deployment(Replica).options(
        name=NAME,
        num_replicas=options.count,
        # Requests beyond are asked of the next replica, and wait where all have as many.
        max_ongoing_requests=options.max_num_seqs + max(2, options.max_num_seqs // 4),
        max_queued_requests=options.max_num_queued * options.count,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=CLOSING,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 1, "num_gpus": options.num_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slack": max(1, options.max_num_seqs // 2)}
        ),
        logging_config=QUIET,
    )
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        return serve.run(deployment.bind(load, settings, log_level), name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise _cause(error) from None


def _cause(error: RuntimeError) -> LlamitaError:
    """Why the replicas did not start."""
    deployments = serve.status().applications[NAME].deployments.values()
    said = "\n".join(one.message for one in deployments)
    return cause(f"{error}\n{said}", "the replicas did not start")


class Replicas:
    """The replicas that run, and the application of their port, which forwards to them."""

    def __init__(self, handle: DeploymentHandle, settings: ServerSettings, *, count: int) -> None:
        self._handle, self._count = handle, count
        self.models, self.paths = handle.facts.remote().result()
        self._metrics = Metrics(())
        self.app: ASGIApp = Forwarder(self.answer, body_timeout=settings.body_timeout)
        for layer in reversed(middleware(settings, self._metrics)):
            self.app = layer.cls(self.app, *layer.args, **layer.kwargs)

    def answer(self, request: ForwardedRequest) -> Pieces:
        """The pieces of a replica's answer, or of all where it is about them all."""
        is_metrics = (request.scope["method"], request.scope["path"]) == ("GET", "/metrics")
        return self._all_metrics() if is_metrics else self._ask(request)

    async def _all_metrics(self) -> Pieces:
        texts = {"front": self._metrics.text().decode()}
        try:
            for number in range(self._count):
                name, text = await self._handle.metrics.remote(ForwardedRequest({}, b"", "", replica=number))
                texts[name] = text
        except (RayError, RayServeException):
            raise ClosedError("a replica has stopped: ask again") from None
        headers = [(b"content-type", METRICS_TYPE.encode())]
        yield [
            {"type": "http.response.start", "status": 200, "headers": headers},
            {"type": "http.response.body", "body": merged(texts)},
        ]

    async def _ask(self, request: ForwardedRequest) -> Pieces:
        """The pieces of a replica's answer. Raises OverloadedError and ClosedError."""
        pieces = self._handle.options(stream=True).answer.remote(request)
        try:
            async for messages in pieces:
                yield messages
        except BackPressureError:
            raise OverloadedError("all replicas have as many requests as they take: try again later") from None
        except (RayError, RayServeException):
            raise ClosedError("the replica that wrote this answer has stopped: ask again") from None
        except (asyncio.CancelledError, GeneratorExit):  # the client has left
            pieces.cancel()
            raise
