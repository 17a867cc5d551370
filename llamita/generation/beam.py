"""The beam search loop: run the model over all beams, let the search choose, reorder the cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llamita.errors import UsageError
from llamita.generation.beam_search import BeamSearch, filler, stops_at
from llamita.generation.guidance import Guidance, guidance_of
from llamita.generation.outputs import ScoreRecorder
from llamita.generation.request import GenerationRequest
from llamita.generation.run import GenerationResult, Run
from llamita.generation.runner import ModelRunner
from llamita.generation.sequence import Finish, generators_of
from llamita.generation.sequence import Sequence as TextSequence
from llamita.generation.streaming import ColumnStreamer
from llamita.sampling.history import History, LogitsProcessor


class BeamRunner(ModelRunner):
    """A model runner whose rows are repeated and reordered; prompts are read once, not once a beam."""

    def repeat(self, times: int) -> None:
        """Repeat every row with its cache; copies of a row are neighbours."""
        self._change(lambda x: x.repeat_interleave(times, 0))
        if self._mask is not None:
            self._mask = self._mask.repeat_interleave(times, 0)
        if self._positions is not None and len(self._positions) > 1:
            self._positions = self._positions.repeat_interleave(times, 0)
        if self.cache is not None:
            self.cache.repeat(times)
        for steps in self.recorded.values():
            steps[-1] = tuple(x.repeat_interleave(times, 0) for x in steps[-1])

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row `rows[i]` (B,) was; the rows of one prompt have one mask."""
        if self.cache is not None:
            self.cache.reorder(rows)
        else:
            self._change(lambda x: x.index_select(0, rows))

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self._ids = None if self._ids is None else change(self._ids)
        self._embeds = None if self._embeds is None else change(self._embeds)


def untouched(logits: Tensor, history: History) -> Tensor:
    """The process that changes nothing."""
    return logits


@torch.no_grad()
def beam_steps(
    runner: BeamRunner,
    search: BeamSearch,
    *,
    process: LogitsProcessor = untouched,
    recorder: ScoreRecorder | None = None,
    guidance: Guidance | None = None,
) -> Iterator[list[list[int]]]:
    """Search until nothing can improve; every step yields the tokens that became final, a list for each prompt.

    runner: of the B prompts. process: changes the log probabilities, given the texts so far. guidance: away from B
    negative prompts; its runner is a BeamRunner, as each beam has its own negative text. The results are
    `search.best()`.
    """
    runners = [runner]
    if guidance is not None:
        assert isinstance(guidance.runner, BeamRunner)
        runners.append(guidance.runner)
    while not search.is_over:
        logits = runner.logits()  # at first (B, V), then (B * beams, V)
        scores = logits.log_softmax(-1)
        scores = scores if guidance is None else guidance(scores)
        if search.written == 0:
            logits, scores = (x.repeat_interleave(search.beams, 0) for x in (logits, scores))
            for each in runners:
                each.repeat(search.beams)
        scores = process(scores, search.history)
        if recorder is not None:
            recorder(logits, scores)
        rows = search.advance(scores)
        yield search.settled()
        for each in runners:
            each.reorder(rows)
            each.append(search.last)


def search_beams(request: GenerationRequest) -> Run:
    """Beam search: write the most probable whole texts, or with do_sample draw the beams."""
    settings, prompts = request.settings, len(request.input_ids)
    recorder, runner, sequences = request.score_recorder, request.runner(BeamRunner), request.sequences()
    assert isinstance(runner, BeamRunner)
    seeded = generators_of(sequences)
    fill = filler(settings.pad_token_id, request.ending_ids)
    found = _search(request, recorder, seeded, fill)
    params = request.params([row for row in range(prompts) for _ in range(settings.num_beams)])
    of_beams = None if seeded is None else [one for one in seeded for _ in range(settings.num_beams)]
    process = request.processor(params, prompts * settings.num_beams, of_beams) or untouched
    streamer = ColumnStreamer(prompts, request.on_step, fill=fill)
    guidance = guidance_of(request, BeamRunner) if settings.is_guided else None

    def write() -> Iterator[object]:
        for settled in beam_steps(runner, found, process=process, recorder=recorder, guidance=guidance):
            streamer.push(settled, found.closed[:, 0].tolist())
            _hand_over(sequences, settled)
            yield settled
        for sequence in sequences:
            sequence.end(Finish("time" if request.is_late else "criterion"))

    def result() -> GenerationResult:
        written, indices, scores = found.best(settings.num_return_sequences)
        return GenerationResult(tokens=written, recorder=recorder, runner=runner, beams=(indices, scores))

    return Run(request=request, sequences=sequences, steps=write(), result=result)


def _search(
    request: GenerationRequest, recorder: ScoreRecorder | None, seeded: list[torch.Generator] | None, fill: int
) -> BeamSearch:
    settings = request.settings
    return BeamSearch(
        request.history,
        beams=settings.num_beams,
        limit=max(request.limits),
        eos_token_ids=request.ending_ids,
        stops=_stops(request, recorder),
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
        do_sample=settings.do_sample,
        generators=seeded,
        fill=fill,
    )


def _hand_over(sequences: list[TextSequence], settled: list[list[int]]) -> None:
    """Append the tokens that became final to the sequences."""
    for sequence, tokens in zip(sequences, settled, strict=True):
        for token_id in tokens:
            if sequence.finish is None:
                sequence.push(token_id)


def _stops(request: GenerationRequest, recorder: ScoreRecorder | None) -> Callable[[Tensor], Tensor] | None:
    """Which written tokens (R, new) end a beam without an end token: by stop strings, criteria or max_time."""
    strings, tables = request.settings.stops, request.tables
    if strings and tables is None:
        raise UsageError("stop_strings are found in text: pass tokenizer= as well")
    if not (strings or request.criteria or request.settings.max_time is not None):
        return None
    found = stops_at(strings, tables.tokenizer, again=request.dropped) if strings and tables else None

    def over(tokens: Tensor) -> Tensor:
        prompts = request.input_ids.repeat_interleave(len(tokens) // len(request.input_ids), 0)
        verdicts = request.are_over(torch.cat((prompts, tokens), dim=1), recorder)
        return verdicts if found is None else verdicts | found(tokens)

    return over
