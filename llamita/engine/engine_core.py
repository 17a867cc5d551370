"""The core of the engine: requests, steps and their outcomes, for the one thread that owns the model."""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING

from torch import Tensor

from llamita.engine.block_pool import BlockPool
from llamita.engine.handle import RequestHandle, Waiter, wake
from llamita.engine.limits import EngineLimits, pages_of
from llamita.engine.live import LiveRequest
from llamita.engine.proposer import Proposer, most_in_step
from llamita.engine.runner import Computed, Failed, StepRunner
from llamita.engine.scheduler import Request, Scheduled, Scheduler, Step
from llamita.engine.stats import EngineStats
from llamita.errors import AbortedError
from llamita.generation.completion import completion_of
from llamita.generation.protocol import LanguageModel
from llamita.generation.text_options import TextModel
from llamita.sampling.batch import sample

if TYPE_CHECKING:
    from llamita.parallel.followers import Followers

NUM_SPECULATIVE_TOKENS = 5  # with a draft model, where no other number is asked for


class EngineCore:
    """Requests that are under way, and the steps that write them; only `stats` and `abandon` are safe in other threads.

    on_end: called once for each request that ends, however that is. draft_model: proposes tokens. followers: see
    `StepRunner`.
    """

    def __init__(
        self,
        texts: TextModel,
        limits: EngineLimits,
        *,
        num_blocks: int,
        on_end: Callable[[], None],
        draft_model: LanguageModel | None = None,
        followers: "Followers | None" = None,
    ) -> None:
        model = texts.model
        pages = pages_of(model, num_blocks, limits.block_size)
        adapted = {name: one.model for name, one in texts.adapters.items()}
        self.runner = StepRunner({None: model, **adapted}, pages, followers)
        if followers is not None:
            followers.tell("allocate", num_blocks, limits.block_size)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, limits.block_size, limits.enable_prefix_caching),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )
        self.last_step = monotonic()
        self._live: dict[Request, LiveRequest] = {}
        self._timed: dict[Request, LiveRequest] = {}  # those of them that may not take as long as they like
        self._on_end = on_end
        self._prompt_tokens = self._cached_prompt_tokens = self._generation_tokens = 0
        self._draft_model, self._draft_tokens, self._accepted_tokens = draft_model, 0, 0
        self._num_speculative_tokens = limits.num_speculative_tokens
        if self._num_speculative_tokens is None:
            self._num_speculative_tokens = 0 if draft_model is None else NUM_SPECULATIVE_TOKENS

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self.scheduler.has_work

    def stats(self, unfinished: int) -> EngineStats:
        """Counts of now, where this number of requests has not ended; each is right by itself."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=max(0, unfinished - len(scheduler.running)),
            blocks=pool.num_blocks,
            free_blocks=pool.num_free,
            cached_blocks=pool.num_cached,
            steps=scheduler.num_steps,
            preemptions=scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            generation_tokens=self._generation_tokens,
            draft_tokens=self._draft_tokens,
            accepted_tokens=self._accepted_tokens,
            step_age=monotonic() - self.last_step if self.has_work else 0.0,
        )

    def add(self, live: LiveRequest) -> None:
        """Let a request wait for its turn; one that writes nothing is over once its prompt is noted."""
        self._live[live.request] = live
        if live.terms.timeout is not None or live.terms.queue_timeout is not None:
            self._timed[live.request] = live
        if self._num_speculative_tokens:
            live.proposer = Proposer(self._draft_model, self._num_speculative_tokens)
        self.scheduler.add(live.request)
        if live.handle.request.prompt_logprobs is None:
            return
        try:
            with self.runner.together("prompt_logprobs", live.sequence.prompt_token_ids):
                live.note_prompt()
        except Exception as error:  # of this request, as all that its tokens lead to
            self.end(live, error)
            return
        if live.sequence.finish is not None:
            self.end(live, None)

    def abort(self, handle: RequestHandle) -> None:
        """End a request, unless it is over."""
        live = next((one for one in self._live.values() if one.handle is handle), None)
        if live is not None:
            self.end(live, AbortedError(f"request {handle.request_id} was aborted"))

    def end(self, live: LiveRequest, error: BaseException | None) -> None:
        """End a request with an error, or as it is."""
        wake(self._taken_out(live, error))

    def end_all(self, error: BaseException) -> None:
        """End every request with an error, also where the scheduler cannot, as that may be what has failed."""
        for live in list(self._live.values()):
            try:
                self.end(live, error)
            except Exception:
                wake(live.handle.end(error))
                self._on_end()

    def abandon(self, error: BaseException) -> None:
        """End the handles of all requests, for an engine that is given up in the middle of a step; in any thread."""
        wake([waiter for live in list(self._live.values()) for waiter in live.handle.end(error)])

    def step(self) -> None:
        """Compute a step, and hand over what it wrote. What fails for one request ends that one."""
        self._end_overdue()
        step = self.scheduler.schedule()
        self._note_scheduled(step)
        drafts, waiters = self._propose(step), list[Waiter]()
        for outcome in self.runner.run(step, drafts):
            if isinstance(outcome, Failed):
                waiters += self._taken_out(self._live[outcome.request], outcome.error)
            else:
                self.scheduler.update(Step(outcome.parts))
                waiters += self._write(outcome, drafts)
        wake(waiters)
        self.last_step = monotonic()

    def _propose(self, step: Step) -> dict[Request, list[int]]:
        """The drafts of what the requests of a step will write, where they are worth it."""
        most = most_in_step(self.runner.models[None], step.scheduled) if self._num_speculative_tokens else 0
        if not most:
            return {}
        size = self.scheduler.pool.block_size
        found = {part.request: self._live[part.request].propose(most, size) for part in step.scheduled if part.is_last}
        return {request: drafts for request, drafts in found.items() if drafts}

    def _write(self, done: Computed, drafts: Mapping[Request, list[int]]) -> list[Waiter]:
        """Choose the next tokens of requests by their logits; returns who waits for them."""
        lives, waiters = [self._live[request] for request in done.ends], list[Waiter]()
        if lives:
            tokens = sample(
                [live.sampler for live in lives], done.logits[: len(lives)] if done.drafted else done.logits
            )
            for live, token in zip(lives, tokens, strict=True):
                waiters += self._take(live, token)
        for live in lives if done.drafted else ():
            if numbers := done.drafted.get(live.request):
                waiters += self._take_drafts(live, drafts[live.request], done.logits[numbers])
        return waiters

    def _take_drafts(self, live: LiveRequest, drafts: list[int], logits: Tensor) -> list[Waiter]:
        """Go on with a request as long as its last token is the draft; logits: (drafts, V) of what follows each."""
        request, waiters, accepted = live.request, list[Waiter](), 0
        for draft, after in zip(drafts, logits, strict=True):
            if live.handle.is_over or request.token_ids[-1] != draft:
                break
            self.scheduler.update(Step([Scheduled(request, request.num_computed_tokens, 1)]))
            accepted += 1
            (token,) = sample([live.sampler], after[None])
            waiters += self._take(live, token)
        assert live.proposer is not None
        live.proposer.learn(len(drafts), accepted)
        live.handle.metrics.draft_tokens += len(drafts)
        live.handle.metrics.accepted_tokens += accepted
        self._draft_tokens += len(drafts)
        self._accepted_tokens += accepted
        return waiters

    def _take(self, live: LiveRequest, token: int | Exception) -> list[Waiter]:
        """Give a request its next token, or the error that there was instead; returns who waits for it."""
        if isinstance(token, Exception):
            return self._taken_out(live, token)
        try:
            live.push(token)
        except Exception as error:  # of its tokenizer, grammar or stop strings: its own
            return self._taken_out(live, error)
        self._generation_tokens += 1
        waiters = live.handle.publish()
        return waiters if live.sequence.finish is None else waiters + self._taken_out(live, None)

    def _taken_out(self, live: LiveRequest, error: BaseException | None) -> list[Waiter]:
        """Take a request out and hand over its outcome; returns who waits for it."""
        self.scheduler.finish(live.request)
        self._live.pop(live.request, None)
        self._timed.pop(live.request, None)
        live.handle.metrics.preemptions = live.request.num_preemptions
        waiters = live.handle.end(completion_of(live.sequence, tools=live.tools) if error is None else error)
        self._on_end()
        return waiters

    def _note_scheduled(self, step: Step) -> None:
        """Note when requests are scheduled for the first time, and what they found in the cache."""
        for request in step.admitted:
            metrics = self._live[request].handle.metrics
            if metrics.scheduled is None:
                metrics.scheduled, metrics.cached_instead = monotonic(), request.cached_instead
                metrics.cached_tokens = request.num_cached_tokens or 0
                self._prompt_tokens += request.num_prompt_tokens
                self._cached_prompt_tokens += metrics.cached_tokens

    def _end_overdue(self) -> None:
        now = monotonic()
        for live, error in [(one, error) for one in self._timed.values() if (error := one.overdue(now)) is not None]:
            self.end(live, error)
