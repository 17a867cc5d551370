"""A request that the engine has: the scheduler's view of it, its sequence, its sampler and its handle."""

import json
from dataclasses import dataclass
from time import monotonic

from llamita.engine.handle import RequestHandle
from llamita.engine.proposer import Proposer
from llamita.engine.scheduler import Request
from llamita.engine.terms import Terms
from llamita.errors import OverdueError, QueueTimeoutError, UnsupportedError
from llamita.generation.decode import logprob_recorder, note_prompts
from llamita.generation.plan import constrained
from llamita.generation.request import GenerationRequest
from llamita.generation.sequence import Sequence
from llamita.sampling.sampler import Sampler
from llamita.structured.grammar import Constraints


@dataclass(eq=False)
class LiveRequest:
    """All that a request has of its own, so that it joins, leaves and is preempted without touching others."""

    request: Request
    sequence: Sequence
    sampler: Sampler
    handle: RequestHandle
    terms: Terms
    tools: tuple[str, ...] = ()
    proposer: Proposer | None = None

    def overdue(self, now: float) -> Exception | None:
        """The error that a request ends with which has waited, or been written, for too long by now."""
        metrics, terms, number = self.handle.metrics, self.terms, self.handle.request_id
        seconds = now - metrics.arrival
        if terms.timeout is not None and seconds > terms.timeout:
            return OverdueError(f"request {number} is not over after {seconds:.1f} s")
        if terms.queue_timeout is not None and metrics.scheduled is None and seconds > terms.queue_timeout:
            return QueueTimeoutError(f"request {number} has waited for {seconds:.1f} s and not begun: try again later")
        return None

    def propose(self, most: int, block_size: int) -> list[int]:
        """At most `most` drafts of what it will write, which fit its blocks and its limit."""
        if self.proposer is None or most < 1:
            return []
        fitting = len(self.request.block_ids) * block_size - self.request.num_tokens
        left = self.sequence.limit - len(self.sequence.token_ids) - 1
        try:
            return self.proposer.propose(self.request.token_ids, min(most, fitting, left))
        except Exception:  # of the draft model: no answer needs drafts
            self.proposer = None
            return []

    def push(self, token: int) -> None:
        """Append the next token."""
        self.request.token_ids.append(token)
        self.sequence.push(token)
        if len(self.sequence.token_ids) == 1:
            self.handle.metrics.first_token = monotonic()

    def note_prompt(self) -> None:
        """Note how probable the prompt's tokens were, by a pass of its own."""
        note_prompts(self.handle.request, [self.sequence])


def live_request(
    generation: GenerationRequest, handle: RequestHandle, terms: Terms, tools: tuple[str, ...] = ()
) -> LiveRequest:
    """A request of one row for the engine, with its constraint compiled. Raises UsageError and UnsupportedError."""
    _check(generation)
    generation = constrained(generation)
    (sequence,) = generation.sequences()
    handle.begin(sequence)
    noted = logprob_recorder(generation, [sequence])
    sampler = Sampler(
        generation.params([0]),
        generation.history,
        seed=None if sequence.generator is None else [sequence.generator],
        limits=[sequence.surprise_limit],
        processors=[] if sequence.constraint is None else [Constraints([sequence.constraint])],
        observers=[] if noted is None else [noted],
    )
    (prompt,) = generation.prompts or [[]]
    # In JSON, as no salt that a client makes up may be that of another adapter.
    salt = json.dumps([handle.adapter, terms.cache_salt])
    request = Request(list(prompt), salt=salt, priority=terms.priority, adapter=handle.adapter)
    return LiveRequest(request, sequence, sampler, handle, terms, tools)


def _check(request: GenerationRequest) -> None:
    """Raise UnsupportedError for what only the loops of `LLM` do."""
    settings = request.settings
    asked = {
        "num_beams": settings.num_beams > 1,
        "guidance_scale": settings.is_guided,
        "prompt_lookup_num_tokens": bool(settings.prompt_lookup_num_tokens),
        "assistant_early_exit": bool(settings.assistant_early_exit),
        "stopping_criteria": bool(request.criteria),
        "a draft model": request.assistant is not None,
    }
    if name := next((name for name, is_asked in asked.items() if is_asked), None):
        raise UnsupportedError(f"the engine does not do {name}: write with llm.generate, or leave it out")
