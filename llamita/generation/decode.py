"""The plain loop: one pass, one token for every row; greedy or sampled."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from llamita.generation.logprobs import LogprobRecorder, note_prompt_logprobs
from llamita.generation.outputs import ScoreRecorder
from llamita.generation.request import GenerationRequest
from llamita.generation.run import GenerationResult, Run
from llamita.generation.runner import ModelRunner
from llamita.generation.sequence import Finish, SequenceBatch, generators_of
from llamita.generation.sequence import Sequence as TextSequence
from llamita.sampling.sampler import Sampler, StatefulProcessor
from llamita.structured.grammar import Constraints
from llamita.structured.token_tables import checked


class Chooser(Protocol):
    """Chooses the next tokens."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) for logits (B, V) in fp32."""
        ...

    def append(self, step: Tensor) -> None:
        """Append the tokens (B,) of a step, with padding in rows that have ended."""
        ...


def decode_steps(
    runner: ModelRunner, *, choose: Chooser, batch: SequenceBatch, pad_token_id: int | None = None
) -> Iterator[Tensor]:
    """Yield the tokens (B,) of one step after another, until every sequence has ended."""
    step = None  # (B,)
    while not batch.is_over:
        with without_gradients():
            if step is not None:
                runner.append(step)
                choose.append(step)
            step = batch.padded(choose(runner.logits()), pad_token_id)
            batch.accept(step)
        yield step


def without_gradients() -> AbstractContextManager[object]:
    """No gradients in a block; where there are none already, at no cost."""
    # Not inference_mode: tokens made there could not be trained on afterwards.
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


def decode(request: GenerationRequest) -> Run:
    """A run that writes one token a pass."""
    given = request
    request, params = given.expanded()
    sequences, runner, recorder = request.sequences(), request.runner(), request.score_recorder
    noted = logprob_recorder(request, sequences)
    choose = Sampler(
        params,
        request.history,
        seed=generators_of(sequences),
        limits=[sequence.surprise_limit for sequence in sequences],
        processors=_processors(request, sequences),
        observers=[one for one in (recorder, noted, *request.observers) if one is not None],
    )
    columns: list[Tensor] = []
    steps = decode_steps(runner, choose=choose, batch=SequenceBatch(sequences), pad_token_id=request.settings.padding)

    def write() -> Iterator[Tensor]:
        for step in steps if request.prefix is None else request.prefix.follow(steps):
            columns.append(step)
            request.on_step(step)
            end_late(request, sequences, columns, recorder)
            yield step

    def result() -> GenerationResult:
        logprobs = None if noted is None else noted.rows
        return GenerationResult(tokens=torch.stack(columns, dim=1), recorder=recorder, runner=runner, logprobs=logprobs)

    return Run(request=given, sequences=sequences, steps=write(), result=result)


def logprob_recorder(request: GenerationRequest, sequences: Sequence[TextSequence]) -> LogprobRecorder | None:
    """The recorder of log-probabilities, if they are asked for; the sequences share its rows."""
    if request.settings.logprobs is None:
        return None
    recorder = LogprobRecorder(checked(request.tables, "logprobs").texts, len(sequences), top=request.settings.logprobs)
    for sequence, row in zip(sequences, recorder.rows, strict=True):
        sequence.logprobs = row
    return recorder


def note_prompts(request: GenerationRequest, sequences: Iterable[TextSequence]) -> None:
    """Note how probable the prompts' tokens were, by a pass of its own for each, if that is asked for."""
    if (top := request.prompt_logprobs) is not None:
        note_prompt_logprobs(request.model, sequences, checked(request.tables, "prompt_logprobs").texts, top=top)


def _processors(request: GenerationRequest, sequences: Sequence[TextSequence]) -> list[StatefulProcessor]:
    processors: list[StatefulProcessor] = []
    if request.settings.is_guided:
        from llamita.generation.guidance import guidance_of

        processors.append(guidance_of(request))
    if request.constraints is not None:
        processors.append(Constraints([one.constraint for one in sequences]))
    return processors


def end_late(
    request: GenerationRequest, sequences: Sequence[TextSequence], columns: list[Tensor], recorder: ScoreRecorder | None
) -> None:
    """End the sequences that are over by max_time or by a criterion of the user."""
    if not (request.criteria or request.is_late):
        return
    ids = torch.cat((request.input_ids, *(step[:, None] for step in columns)), dim=1)
    for sequence, is_over in zip(sequences, request.are_over(ids, recorder).tolist(), strict=True):
        if is_over:
            sequence.end(Finish("time" if request.is_late else "criterion"))
