"""The engine: one thread that owns the model and writes many texts at once, each as if it were alone."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from secrets import randbits
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from uuid import uuid4

import torch
from torch import Tensor

from llamita.cache.paged import PagedCache
from llamita.engine.block_pool import BlockPool
from llamita.engine.handle import RequestHandle, wake
from llamita.engine.limits import EngineLimits, blocks_of
from llamita.engine.live import LiveRequest, live_request
from llamita.engine.receipt import ModelFacts, Receipt, receipt_of
from llamita.engine.runner import StepRunner
from llamita.engine.scheduler import Scheduler, Step
from llamita.errors import AbortedError, ClosedError, OverdueError, OverloadedError, UnsupportedError
from llamita.generation.completion import completion_of
from llamita.generation.text_options import Prompt, TextModel, TextOptions
from llamita.sampling.batch import sample

Result = TypeVar("Result")


@dataclass(frozen=True)
class EngineStats:
    """Counts of an engine: of requests now, of blocks now, and of what happened since it began."""

    running: int
    waiting: int
    blocks: int
    free_blocks: int
    cached_blocks: int
    steps: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generation_tokens: int
    step_age: float  # seconds since the last step ended, 0 while there is nothing to do


class Engine:
    """Writes many texts at once over a paged cache with continuous batching (vLLM's scheduling).

    `submit` may be called from any thread; all work on the model is done by the engine's own thread. A request that
    fails ends alone. Close it, or use it in a `with` block. Raises UnsupportedError for models whose rotation depends
    on the length of the text, and MemoryShortError where the cache does not fit.
    """

    def __init__(self, texts: TextModel, limits: EngineLimits | None = None, *, name: str = "") -> None:
        self.name = name
        self.limits = limits = EngineLimits() if limits is None else limits
        model = texts.model
        if model.config.rope_parameters.depends_on_length:
            raise UnsupportedError(
                f"the engine cannot run rotary type {model.config.rope_parameters.rope_type}, which turns cached keys "
                "again as the text grows: write with llm.generate"
            )
        blocks = blocks_of(model, limits)
        most = min(blocks * limits.block_size, limits.max_model_len or texts.context_length)
        self.texts = TextModel(model, texts.tokenizer, max_model_len=most)
        pages = PagedCache(
            model.config, num_blocks=blocks, block_size=limits.block_size, dtype=model.dtype, device=model.device
        )
        self._runner = StepRunner(model, pages)
        pool = BlockPool(blocks, limits.block_size, limits.enable_prefix_caching)
        self._scheduler = Scheduler(
            pool, max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens
        )
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._live: dict[Any, LiveRequest] = {}  # by the scheduler's request; the engine's thread alone uses it
        self._lock = threading.Lock()
        self._unfinished = 0
        self._is_closing, self._failure = False, None
        self._counts = {"prompt_tokens": 0, "cached_prompt_tokens": 0, "generation_tokens": 0}
        self._last_step = monotonic()
        self._all_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llamita-engine", daemon=True)
        self._thread.start()

    # For callers, from any thread

    def submit(
        self,
        prompt: Prompt,
        *,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        reads_on: bool = True,
        tools: tuple[str, ...] = (),
        **options: Unpack[TextOptions],
    ) -> RequestHandle:
        """Let a text be written; returns at once.

        priority: lower is served first. cache_salt: only requests of the same salt share cached prompts. timeout:
        seconds that it may take, waiting included. reads_on: the text continues the prompt's. tools: names of the
        tools that may be called. Raises UsageError for wrong options, UnsupportedError for those that the engine does
        not have, OverloadedError where too many wait, ClosedError after `close`.
        """
        self._enter()
        try:
            if options.get("seed") is None:
                options["seed"] = randbits(62)  # so that the same text can be written again
            request = self.texts.request([self.texts.token_ids(prompt)], options, reads_on=reads_on)
            handle = RequestHandle(uuid4().hex, request, self._abort)
            live = live_request(request, handle, salt=cache_salt, priority=priority, timeout=timeout, tools=tools)
        except BaseException:
            self._leave()
            raise
        top = options.get("prompt_logprobs")
        self._commands.put(lambda: self._add(live, top))
        return handle

    def receipt(self, handle: RequestHandle) -> Receipt:
        """The receipt of a finished request of this engine (see `llamita replay`)."""
        return receipt_of(self.name, self.facts, handle.request, handle.prompt_token_ids, handle.result(0))

    @cached_property
    def facts(self) -> ModelFacts:
        """What all answers depend on, besides their requests; reads all weights when it is first asked for."""
        return ModelFacts.of(self.texts)

    def forget(self) -> None:
        """Forget all cached prefixes; for `call`, as the cache is the engine's thread's."""
        self._scheduler.pool.clear()

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Let the engine's thread call a function between two steps, for what else needs the model."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._commands.put(run)
        return future

    @property
    def stats(self) -> EngineStats:
        """Counts of now; each is right by itself, as the engine goes on meanwhile."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        has_work = scheduler.has_work
        return EngineStats(
            running=len(scheduler.running),
            waiting=max(0, self._unfinished - len(scheduler.running)),
            blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            cached_blocks=pool.num_cached,
            steps=scheduler.num_steps,
            preemptions=scheduler.num_preemptions,
            step_age=monotonic() - self._last_step if has_work else 0.0,
            **self._counts,
        )

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs and takes requests."""
        return self._failure is None and self._thread.is_alive() and not self._is_closing

    def close(self, timeout: float | None = 0.0) -> None:
        """Take no more requests, let those that are there end within `timeout` seconds, abort the rest, and stop.

        None waits as long as it takes. May be called twice.
        """
        with self._lock:
            self._is_closing = True
        self._commands.put(lambda: None)
        if self._thread.is_alive():
            self._all_done.wait(timeout)
            self._commands.put(None)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(None if kind is None else 0.0)

    def _enter(self) -> None:
        with self._lock:
            if self._is_closing or self._failure is not None:
                raise ClosedError("the engine takes no more requests: it is closed or has failed; start another one")
            if self._unfinished >= self.limits.max_num_seqs + self.limits.max_num_queued:
                raise OverloadedError(
                    f"{self._unfinished} requests are written or wait already, which is the limit: try again later"
                )
            self._unfinished += 1
            self._all_done.clear()

    def _leave(self) -> None:
        with self._lock:
            self._unfinished -= 1
            if not self._unfinished:
                self._all_done.set()

    def _abort(self, handle: RequestHandle) -> None:
        self._commands.put(lambda: self._abort_now(handle))

    # In the engine's thread

    def _run(self) -> None:
        try:
            while self._run_commands():
                if self._scheduler.has_work:
                    self._step()
        except BaseException as error:  # a defect of the engine itself: say so to everybody, rather than hang
            self._failure = error
        finally:
            reason = AbortedError("the engine was closed before the text was over")
            if self._failure is not None:
                reason = ClosedError(f"the engine has failed: {self._failure}")
                reason.__cause__ = self._failure
            for live in list(self._live.values()):
                self._finish(live, reason)

    def _run_commands(self) -> bool:
        """Run the commands that have come, waiting for one where there is nothing else to do; False to stop."""
        if not self._unfinished:
            self._all_done.set()
        is_waiting = not self._scheduler.has_work
        while True:
            try:
                command = self._commands.get(block=is_waiting)
            except queue.Empty:
                return True
            if command is None:
                return False
            if is_waiting:  # an engine without work has not stalled
                self._last_step = monotonic()
            command()
            is_waiting = False

    def _add(self, live: LiveRequest, prompt_logprobs: int | None) -> None:
        """Let the scheduler have a request, unless it was aborted before."""
        if live.handle.is_over:
            return
        self._live[live.request] = live
        self._scheduler.add(live.request)
        if prompt_logprobs is not None:
            try:
                live.note_prompt_logprobs(prompt_logprobs)
            except Exception as error:  # of this request, as all that its tokens lead to
                self._finish(live, error)

    def _abort_now(self, handle: RequestHandle) -> None:
        live = next((one for one in self._live.values() if one.handle is handle), None)
        if live is not None:
            self._finish(live, AbortedError(f"request {handle.request_id} was aborted"))

    def _step(self) -> None:
        self._end_overdue()
        step = self._scheduler.schedule()
        if not step.scheduled:
            return
        self._mark_scheduled(step)
        outcomes = self._runner.run(step)
        parts = list(zip(step.scheduled, outcomes, strict=True))
        self._scheduler.update(Step([part for part, outcome in parts if isinstance(outcome, Tensor)], []))
        rows: list[tuple[LiveRequest, Tensor]] = []
        for part, outcome in parts:
            if isinstance(outcome, Exception):
                self._finish(self._live[part.request], outcome)
            elif part.is_last:
                rows.append((self._live[part.request], outcome))
        self._write(rows)
        self._last_step = monotonic()

    def _write(self, rows: list[tuple[LiveRequest, Tensor]]) -> None:
        """Choose the next token of each request, and hand over what became of it."""
        if not rows:
            return
        logits = torch.stack([row for _, row in rows])
        tokens = sample([live.sampler for live, _ in rows], logits)
        readers: list[asyncio.Future[None] | None] = []
        for (live, _), token in zip(rows, tokens, strict=True):
            readers.append(self._take(live, token))
        wake([reader for reader in readers if reader is not None])

    def _take(self, live: LiveRequest, token: int | Exception) -> "asyncio.Future[None] | None":
        """Give a request its next token; returns the future of its reader."""
        try:
            delta = live.push(token) if isinstance(token, int) else token
        except Exception as error:  # of its tokenizer, grammar or stop strings: its own
            delta = error
        if isinstance(delta, Exception):
            return self._end(live, delta)
        self._counts["generation_tokens"] += 1
        reader = live.handle.push(delta)
        return self._end(live, None) or reader if live.sequence.finish is not None else reader

    def _finish(self, live: LiveRequest, error: BaseException) -> None:
        reader = self._end(live, error)
        wake([] if reader is None else [reader])

    def _end(self, live: LiveRequest, error: BaseException | None) -> "asyncio.Future[None] | None":
        """Take a request out and hand over its outcome; returns the future of its reader."""
        self._scheduler.finish(live.request)
        self._live.pop(live.request, None)
        live.handle.metrics.preemptions = live.request.num_preemptions
        outcome = completion_of(live.sequence, tools=live.tools) if error is None else error
        reader = live.handle.end(outcome)
        self._leave()
        return reader

    def _mark_scheduled(self, step: Step) -> None:
        """Note when requests are scheduled for the first time, and what they found in the cache."""
        for part in step.scheduled:
            live = self._live[part.request]
            if live.handle.metrics.scheduled is None:
                live.handle.metrics.scheduled = monotonic()
                live.handle.metrics.cached_tokens = cached = part.request.num_cached_tokens or 0
                live.handle.metrics.cached_instead = part.request.cached_instead
                self._counts["prompt_tokens"] += part.request.num_prompt_tokens
                self._counts["cached_prompt_tokens"] += cached

    def _end_overdue(self) -> None:
        now = monotonic()
        for live in [one for one in self._live.values() if one.deadline is not None and now > one.deadline]:
            waited = now - live.handle.metrics.arrival
            self._finish(live, OverdueError(f"request {live.handle.request_id} is not over after {waited:.1f} s"))
