"""Three ways of writing: token by token, by beams, by guessing ahead. Each takes a job and returns what it wrote."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamita.cache.dynamic import DynamicCache
from llamita.errors import UnsupportedError, UsageError
from llamita.generation import beam
from llamita.generation.assistants import drafter, guesser
from llamita.generation.decode import ModelRunner, tokens
from llamita.generation.guidance import Guidance
from llamita.generation.outputs import RaggedScoreRecorder, ScoreRecorder, side_by_side
from llamita.generation.request import GenerationRequest, GenerationResult
from llamita.generation.sequence import Finish, Row, Stop
from llamita.generation.speculative import hf_draws, verify
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.streaming import ColumnStreamer
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.sampler import Sampler, generators, greedy_rows
from llamita.sampling.selection import TokenSelector


def write(job: GenerationRequest) -> GenerationResult:
    """Token by token: greedy, or drawn."""
    job, settings = job.expanded()
    record, feed, rows = job.record, job.feed(), job.rows()
    choose = Sampler(
        settings,
        job.history,
        seed=job.options.seed,
        guidance=_guidance(job),
        constraints=job.rules,
        record=record,
    )
    columns: list[Tensor] = []
    for step in tokens(feed, choose=choose, stop=Stop(rows), pad_token_id=job.options.padding):
        columns.append(step[:, None])
        job.on_step(step)
        _judge(job, rows, columns, record)
    return GenerationResult(tokens=torch.cat(columns, dim=1), record=record, feed=feed)


def _judge(job: GenerationRequest, rows: list[Row], columns: list[Tensor], record: ScoreRecorder) -> None:
    """End the rows that the clock or a criterion of the user ends."""
    if not (job.criteria or job.is_late):
        return
    ids = torch.cat((job.input_ids, *columns), dim=1)
    for row, is_over in zip(rows, _verdicts(job, ids, record).tolist(), strict=True):
        if is_over and row.finish is None:
            row.finish = Finish("time" if job.is_late else "criterion")


def _verdicts(job: GenerationRequest, ids: Tensor, record: ScoreRecorder) -> Tensor:
    """Which texts (R, T) the clock or a criterion ends: bool (R,)."""
    over = torch.full((len(ids),), job.is_late, device=ids.device)
    for criterion in job.criteria:
        over = over | torch.as_tensor(criterion(ids, record.scores), device=ids.device).bool()
    return over


def search(job: GenerationRequest) -> GenerationResult:
    """By beams: the texts that are likeliest as a whole, or drawn beside each other."""
    options, prompts = job.options, len(job.input_ids)
    record, feed = job.record, job.feed(beam.BeamRunner)
    assert isinstance(feed, beam.BeamRunner)
    settings = job.settings([row for row in range(prompts) for _ in range(options.num_beams)])
    seeded = generators(options.seed, prompts, job.input_ids.device)
    fill = beam.filler(options.pad_token_id, options.eos_token_ids)
    found = beam.BeamSearch(
        job.history,
        beams=options.num_beams,
        limit=job.limit,
        eos_token_ids=options.eos_token_ids,
        stops=_beam_stops(job, record),
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        do_sample=options.do_sample,
        generators=seeded,
        fill=fill,
    )
    beams = None if seeded is None else [one for one in seeded for _ in range(options.num_beams)]
    process = job.process(settings, prompts * options.num_beams, beams)
    told = ColumnStreamer(prompts, job.on_step, fill=fill)
    guidance = _guidance(job, beam.BeamRunner)
    for settled in beam.tokens(feed, found, process=process or beam.untouched, record=record, guidance=guidance):
        told.push(settled, found.closed[:, 0].tolist())
    written, indices, scores = found.best(options.num_return_sequences)
    return GenerationResult(tokens=written, record=record, feed=feed, beams=(indices, scores))


def _beam_stops(job: GenerationRequest, record: ScoreRecorder) -> Callable[[Tensor], Tensor] | None:
    """Which written tokens (R, new) end a beam beside the end tokens: stop strings, criteria, the clock."""
    strings, tokenizer = job.options.stops, job.tokenizer
    if strings and tokenizer is None:
        raise UsageError("stop_strings are found in text: pass tokenizer= as well")
    if not (strings or job.criteria or job.options.max_time is not None):
        return None
    found = beam.stops_at(strings, tokenizer, again=job.dropped) if strings and tokenizer else None

    def over(tokens: Tensor) -> Tensor:
        prompts = job.input_ids.repeat_interleave(len(tokens) // len(job.input_ids), 0)
        verdicts = _verdicts(job, torch.cat((prompts, tokens), dim=1), record)
        return verdicts if found is None else verdicts | found(tokens)

    return over


def speculate(job: GenerationRequest) -> GenerationResult:
    """By guessing ahead and checking several tokens in one pass."""
    options = job.options
    if options.kept or options.guidance_scale not in (None, 1) or job.criteria or job.embeds is not None:
        raise UnsupportedError(
            "guessing ahead gives no attentions or hidden states and takes no guidance, criteria or inputs_embeds: "
            "leave the assistant out"
        )
    if job.positions is not None or job.logits_to_keep != 1:
        raise UnsupportedError(
            "guessing ahead counts positions by the mask and keeps the logits of its guesses: leave position_ids and "
            "logits_to_keep out"
        )
    model = job.model
    cache = job.cache if job.cache is not None else job.new_cache()
    if not isinstance(model, LlamaForCausalLM) or not (cache is None or isinstance(cache, DynamicCache)):
        raise UnsupportedError(
            f"guessing ahead takes tokens back, and needs a language model and a DynamicCache, not a "
            f"{type(model).__name__} and a {type(getattr(cache, 'inner', cache)).__name__}: leave the assistant out"
        )
    job, settings = job.expanded()
    rows, acceptance, record = job.rows(), verify.Acceptance(), job.record
    ledger = RaggedScoreRecorder(len(rows), record) if record.is_on else None
    seeded = generators(options.seed, len(rows), job.input_ids.device)
    greedy = greedy_rows(settings, len(rows))
    common: dict[str, Any] = {"stop": Stop(rows), "cache": cache, "acceptance": acceptance, "ledger": ledger}
    process, text = job.process(settings, len(rows), seeded), RaggedBatch(job.input_ids, job.mask)
    if seeded is None and greedy == [False] and options.draft_tree is None:
        steps = hf_draws.tokens(model, text, guesser(job, model, settings, process), process=process, **common)
    else:
        choice = TokenSelector(
            len(rows), process=process, greedy=greedy, generators=seeded, device=job.input_ids.device
        )
        steps = verify.tokens(model, text, drafter(job, model), choice=choice, **common)
    fill = options.padding if options.padding is not None else 0
    told = ColumnStreamer(len(rows), job.on_step, fill=fill)
    for new in steps:
        _judge(job, rows, [], ScoreRecorder())
        told.push(new, [row.finish is not None for row in rows])
    if ledger is not None:
        ledger.close([len(row.token_ids) for row in rows])
    written = side_by_side([row.token_ids for row in rows], fill=fill, device=job.input_ids.device)
    return GenerationResult(tokens=written, record=record, acceptance=acceptance)


def _guidance(job: GenerationRequest, kind: type[ModelRunner] = ModelRunner) -> Guidance | None:
    scale = job.options.guidance_scale
    if scale is None or scale == 1:
        return None
    device, prompts = job.input_ids.device, len(job.input_ids)
    ids, mask = (None if x is None else x.to(device) for x in job.negative)
    ids = job.input_ids[:, -1:] if ids is None else ids
    if not ids.shape[1]:
        raise UsageError(
            "guidance_scale needs a text to steer away from beside inputs_embeds: pass negative_prompt_ids"
        )
    if len(ids) == prompts * job.options.num_beams:  # transformers wants the rows of one prompt's beams, all alike
        ids, mask = (None if x is None else x[:: job.options.num_beams] for x in (ids, mask))
    assert ids is not None
    if len(ids) != prompts:
        raise UsageError(f"negative_prompt_ids has {len(ids)} rows for {prompts} prompts: give one for each")
    return Guidance(scale, kind(job.model, ids, attention_mask=mask, logits_to_keep=0))  # all of them, as there
