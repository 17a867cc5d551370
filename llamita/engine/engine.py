"""The engine: one thread that owns the model and writes many texts at once, each as if it were alone."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from secrets import randbits
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack
from uuid import uuid4

from torch import Tensor

from llamita.engine.engine_core import EngineCore
from llamita.engine.engine_thread import EngineThread
from llamita.engine.handle import RequestHandle, wake
from llamita.engine.limits import EngineLimits, blocks_of
from llamita.engine.live import LiveRequest, live_request
from llamita.engine.proposer import check_draft
from llamita.engine.receipt import ModelFacts, Receipt, receipt_of
from llamita.engine.stats import EngineStats
from llamita.engine.terms import Terms
from llamita.errors import ClosedError, OverloadedError, UnsupportedError
from llamita.generation.request import GenerationRequest
from llamita.generation.text_options import Prompt, TextModel, TextOptions

if TYPE_CHECKING:
    from llamita.parallel.followers import Followers

Result = TypeVar("Result")


class Engine:
    """Writes many texts at once over a paged cache with continuous batching (vLLM's scheduling).

    `submit` may be called from any thread; all work on the model is done by the engine's own thread. While it writes,
    only what `call` is given may change the model. A request that fails ends alone. Close it, or use it in a `with`
    block. followers: the other processes of a model that several share. Raises UnsupportedError for models whose
    rotation depends on the length of the text, and MemoryShortError where the cache does not fit.
    """

    def __init__(
        self,
        texts: TextModel,
        limits: EngineLimits | None = None,
        *,
        name: str = "",
        followers: "Followers | None" = None,
    ) -> None:
        self.name, self.followers, self.limits = name, followers, EngineLimits() if limits is None else limits
        model, limits = texts.model, self.limits
        if model.config.rope_parameters.depends_on_length:
            raise UnsupportedError(
                f"the engine cannot run rotary type {model.config.rope_parameters.rope_type}, which turns cached keys "
                "again as the text grows: write with llm.generate"
            )
        blocks = blocks_of(model, limits)
        most = min(blocks * limits.block_size, limits.max_model_len or texts.context_length)
        check_draft(model, texts.draft)
        self.texts = texts.limited(most)
        self._core = EngineCore(
            self.texts, limits, num_blocks=blocks, on_end=self._leave, draft_model=texts.draft, followers=followers
        )
        self._facts: dict[str | None, ModelFacts] = {}
        self._facts_lock = threading.Lock()
        self._lock = threading.Lock()  # of the two below
        self._unfinished = 0
        self._is_closing = False
        self._all_done = threading.Event()
        self._thread = EngineThread(self._core, followers)
        self._thread.start()

    def submit(
        self,
        prompt: Prompt,
        *,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        queue_timeout: float | None = None,
        reads_on: bool = True,
        tools: tuple[str, ...] = (),
        adapter: str | None = None,
        **options: Unpack[TextOptions],
    ) -> RequestHandle:
        """Submit a request for one text; returns its handle at once.

        priority, cache_salt, timeout, queue_timeout: see `Terms`. reads_on: the text continues the prompt's. tools:
        names of the tools that may be called. adapter: the one that writes, of those that the model was loaded with.
        Raises UsageError for wrong options and unknown adapters, UnsupportedError for options that the engine does not
        have, OverloadedError where too many wait, ClosedError after `close`.
        """
        terms = Terms(priority=priority, cache_salt=cache_salt, timeout=timeout, queue_timeout=queue_timeout)
        self._enter()
        try:
            request = self._request(prompt, options, reads_on=reads_on, adapter=adapter)
            handle = RequestHandle(uuid4().hex, request, self._abort, adapter)
            live = live_request(request, handle, terms, tools)
        except BaseException:
            self._leave()
            raise
        self._start(live)
        return handle

    def receipt(self, handle: RequestHandle) -> Receipt:
        """The receipt of a finished request of this engine (see `llamita replay`)."""
        facts = self.facts(handle.adapter)
        return receipt_of(self.name, facts, handle.request, handle.prompt_token_ids, handle.result(0))

    def facts(self, adapter: str | None = None) -> ModelFacts:
        """What all answers depend on, besides their requests; reads all weights when it is first asked for."""
        with self._facts_lock:
            if adapter not in self._facts:
                self._facts[adapter] = self._read_facts(self.texts.with_adapter(adapter))
            return self._facts[adapter]

    def _read_facts(self, texts: TextModel) -> ModelFacts:
        """The facts of a model; where several processes share the weights, these are gathered between two steps."""
        if self.followers is None:
            return ModelFacts.of(texts)

        def read() -> ModelFacts:
            with self._core.runner.together("weights_digest"):
                return ModelFacts.of(texts)

        return self.call(read).result()

    def known_facts(self, adapter: str | None = None) -> ModelFacts | None:
        """The facts where somebody has asked for them before, else None; does not wait."""
        return self._facts.get(adapter)

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Let the engine's thread call a function between two steps, for what else needs the model."""
        return self._thread.call(function)

    def last_hidden_state(self, token_ids: Sequence[int], adapter: str | None = None) -> Tensor:
        """The last hidden states (T, D) of a text; for `call`, as the model is the engine's thread's."""
        return self._core.runner.last_hidden_state(token_ids, adapter)

    def forget(self) -> None:
        """Forget all cached prefixes; for `call`, as the cache is the engine's thread's."""
        self._core.scheduler.pool.clear()

    @property
    def stats(self) -> EngineStats:
        """Counts of now; each is right by itself, as the engine goes on meanwhile."""
        return self._core.stats(self._unfinished)

    @property
    def failure(self) -> BaseException | None:
        """What the engine has ended by, None where nothing is wrong."""
        return self._thread.failure

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs and takes requests."""
        return self.failure is None and self._thread.is_alive() and not self._is_closing

    def close(self, timeout: float | None = 0.0, *, patience: float | None = None) -> bool:
        """Take no more requests, let those that are there end within `timeout` seconds, abort the rest, and stop.

        patience: seconds for the step that is under way, which may compile kernels; after that the requests end with an
        error all the same. None, for either, waits as long as it takes. Returns whether the engine has stopped. May be
        called twice.
        """
        if not self._thread.is_alive():  # as in a forked process, where the lock may be held for ever
            return True
        with self._lock:
            self._is_closing = True
            if not self._unfinished:
                self._all_done.set()
        self._all_done.wait(timeout)
        return self._thread.stop(patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None if kind is None else 0.0)

    def _enter(self) -> None:
        """Count a request. Raises ClosedError and OverloadedError."""
        closed = ClosedError(
            "the engine takes no more requests: it is closed, has failed, or is another process's; start another one"
        )
        if not self.is_alive:  # as in a forked process, where the lock may be held for ever
            raise closed
        with self._lock:
            if self._is_closing:
                raise closed
            if self._unfinished >= self.limits.max_num_requests:
                raise OverloadedError(
                    f"{self._unfinished} requests are written or wait already, which is the limit: try again later"
                )
            self._unfinished += 1
            self._all_done.clear()

    def _leave(self) -> None:
        """Count a request no more."""
        with self._lock:
            self._unfinished -= 1
            if not self._unfinished:
                self._all_done.set()

    def _request(
        self, prompt: Prompt, options: TextOptions, *, reads_on: bool, adapter: str | None
    ) -> GenerationRequest:
        """What is to be written, with a drawn seed where none is given, so that the same can be written again."""
        seed = options.get("seed")
        options = {**options, "seed": randbits(62) if seed is None else seed}
        texts = self.texts.with_adapter(adapter)
        return texts.request([texts.token_ids(prompt)], options, reads_on=reads_on)

    def _start(self, live: LiveRequest) -> None:
        """Let the engine's thread add a request, which ends with an error where the engine has stopped."""

        def drop(error: BaseException) -> None:
            wake(live.handle.end(error))
            self._leave()

        self._thread.put(lambda: self._core.add(live), drop)

    def _abort(self, handle: RequestHandle) -> None:
        self._thread.put(lambda: self._core.abort(handle), lambda error: None)
