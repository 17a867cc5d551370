"""Speculative decoding of a request: choose the proposer and the loop that verifies its drafts."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from llamita.cache.dynamic import DynamicCache
from llamita.errors import UnsupportedError
from llamita.generation.decode import end_late
from llamita.generation.outputs import RaggedScoreRecorder, side_by_side
from llamita.generation.protocol import LanguageModel
from llamita.generation.request import GenerationRequest
from llamita.generation.run import Acceptance, GenerationResult, Run
from llamita.generation.sequence import Sequence, SequenceBatch, generators_of
from llamita.generation.settings import DEFAULT_TOP_K, DRAFTING_DEFAULTS
from llamita.generation.speculative.hf_draws import HFDraftProposer, HFLookupProposer, HFProposer, hf_speculative_steps
from llamita.generation.speculative.proposers import (
    DraftModelProposer,
    DraftTreeProposer,
    EarlyExitProposer,
    PromptLookupProposer,
    Proposer,
)
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import speculative_steps
from llamita.generation.streaming import ColumnStreamer
from llamita.sampling.history import LogitsProcessor
from llamita.sampling.params import SamplingParams
from llamita.sampling.per_row import LARGEST
from llamita.sampling.sampler import LogitsProcessorList, greedy_rows
from llamita.sampling.selection import TokenSelector

TWICE = (  # transformers applies these twice to an assistant's logits: the target's processors, then its own
    "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "watermarking_config",
)  # fmt: skip


def speculate(request: GenerationRequest) -> Run:
    """A run that drafts several tokens and verifies them in one pass.

    Raises UnsupportedError for settings that need one pass per token, and for caches that cannot be cropped.
    """
    given, cache = request, _checked_cache(request)
    request, _ = given.expanded()
    sequences, scores = request.sequences(), request.score_recorder
    acceptance = Acceptance()
    recorder = None if scores is None else RaggedScoreRecorder(len(sequences), scores)
    steps = _steps(request, sequences, cache, acceptance, recorder)
    fill = request.settings.padding if request.settings.padding is not None else 0
    streamer = ColumnStreamer(len(sequences), request.on_step, fill=fill)

    def write() -> Iterator[object]:
        for new in steps:
            end_late(request, sequences, [], None)
            streamer.push(new, [one.finish is not None for one in sequences])
            yield new

    def result() -> GenerationResult:
        if recorder is not None:
            recorder.close([len(one.token_ids) for one in sequences])
        tokens = [one.token_ids for one in sequences]
        return GenerationResult(
            tokens=side_by_side(tokens, fill=fill, device=request.input_ids.device), recorder=scores
        )

    return Run(request=given, sequences=sequences, steps=write(), result=result, acceptance=acceptance)


def _checked_cache(request: GenerationRequest) -> DynamicCache | None:
    """The cache to begin with; None lets the loop make one."""
    settings = request.settings
    if settings.recorded_outputs or settings.is_guided or request.criteria or request.embeds is not None:
        raise UnsupportedError(
            "speculative decoding gives no attentions or hidden states and takes no guidance, criteria or "
            "inputs_embeds: leave the assistant out"
        )
    if request.positions is not None or request.logits_to_keep != 1:
        raise UnsupportedError(
            "speculative decoding counts positions by the mask and keeps the logits of its drafts: leave "
            "position_ids and logits_to_keep out"
        )
    cache = request.cache if request.cache is not None else request.new_cache()
    if not hasattr(request.model, "first_layers") or not (cache is None or isinstance(cache, DynamicCache)):
        raise UnsupportedError(
            f"speculative decoding takes tokens back, and needs a language model and a DynamicCache, not a "
            f"{type(request.model).__name__} and a {type(getattr(cache, 'inner', cache)).__name__}: leave the "
            "assistant out"
        )
    return cache


def _steps(
    request: GenerationRequest,
    sequences: list[Sequence],
    cache: DynamicCache | None,
    acceptance: Acceptance,
    recorder: RaggedScoreRecorder | None,
) -> Iterator[list[list[int]]]:
    """The loop: transformers' own for one unseeded draw where its random numbers are wanted, else ours."""
    model, rows, device = request.model, len(sequences), request.input_ids.device
    params = request.params(range(rows))
    seeded = generators_of(sequences)
    greedy, process = greedy_rows(params, rows), request.processor(params, rows, seeded)
    text = RaggedBatch(request.input_ids, request.mask)
    common: dict[str, Any] = {"batch": SequenceBatch(sequences), "cache": cache, "acceptance": acceptance}
    common["recorder"] = recorder
    if request.repeats_hf_draws and seeded is None and greedy == [False] and request.settings.draft_tree is None:
        proposer = hf_proposer_of(request, model, params, process)
        return hf_speculative_steps(model, text, proposer, process=process, **common)
    selector = TokenSelector(rows, process=process, greedy=greedy, generators=seeded, device=device)
    return speculative_steps(model, text, proposer_of(request, model), selector=selector, **common)


def proposer_of(request: GenerationRequest, model: LanguageModel) -> Proposer:
    """The proposer for the rows of a batch."""
    settings, assistant = request.settings, _assistant(request, model)
    if assistant is None:
        return _lookup(request)
    drafting = _drafting(request, model, assistant)
    return drafting if settings.draft_tree is None else DraftTreeProposer(drafting, branches=settings.draft_tree)


def hf_proposer_of(
    request: GenerationRequest, model: LanguageModel, params: SamplingParams, process: LogitsProcessor | None
) -> HFProposer:
    """The proposer that draws as transformers does, for one text with these parameters."""
    settings, assistant = request.settings, _assistant(request, model)
    if assistant is None:
        ends, vocabulary = settings.eos_token_ids, model.config.vocab_size
        return HFLookupProposer(_lookup(request), process=process, ends=ends, vocabulary=vocabulary)
    own = _completed(params, settings.top_k is None, assistant)
    ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or ())
    padding = settings.pad_token_id
    padding = _saved(assistant).get("pad_token_id") if padding is None else padding
    return HFDraftProposer(
        _drafting(request, model, assistant), process=_twice(request, params, own), ends=ends, padding=padding
    )


def _assistant(request: GenerationRequest, model: LanguageModel) -> LanguageModel | None:
    """The draft model, None for prompt lookup; of several settings, the one that transformers takes."""
    if request.settings.assistant_early_exit is not None:
        return model
    by_text = request.settings.prompt_lookup_num_tokens is not None and request.settings.draft_tree is None
    return None if by_text else request.assistant


def _lookup(request: GenerationRequest) -> PromptLookupProposer:
    settings = request.settings
    return PromptLookupProposer(
        length=min(settings.prompt_lookup_num_tokens or 1, LARGEST), ngram=settings.max_matching_ngram_size or 2
    )


def _drafting(request: GenerationRequest, model: LanguageModel, assistant: LanguageModel) -> DraftModelProposer:
    """The draft model's proposer, set by the call, its own generation config, or the defaults."""
    chosen: dict[str, Any] = dict(DRAFTING_DEFAULTS)
    for said in (assistant.generation_config, vars(request.settings)):
        chosen |= {name: said[name] for name in DRAFTING_DEFAULTS if said.get(name) is not None}
    length, confidence = chosen["num_assistant_tokens"], chosen["assistant_confidence_threshold"]
    if (layers := request.settings.assistant_early_exit) is not None:
        return EarlyExitProposer(model, layers=layers, length=length, confidence=confidence)
    return DraftModelProposer(assistant, length=length, confidence=confidence)


def _completed(params: SamplingParams, has_no_top_k: bool, assistant: LanguageModel) -> SamplingParams:
    """The parameters, completed by the assistant's generation config, as transformers does."""
    saved = _saved(assistant)
    missing = [item.name for item in fields(SamplingParams) if getattr(params, item.name) is None]
    own = {name: saved[name] for name in missing if saved.get(name) is not None}
    if has_no_top_k:
        own["top_k"] = saved.get("top_k", DEFAULT_TOP_K)
    return replace(params, **own)


def _saved(assistant: LanguageModel) -> Mapping[str, Any]:
    config = assistant.config
    return assistant.generation_config or {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}


def _twice(request: GenerationRequest, params: SamplingParams, own: SamplingParams) -> LogitsProcessor | None:
    """transformers applies these processors twice to an assistant's logits; so do we."""
    process = request.processor(replace(own, **{name: getattr(params, name) for name in TWICE}), 1)
    filters = LogitsProcessorList(
        SamplingParams(do_sample=True, **{name: getattr(own, name) for name in TWICE}),
        rows=1,
        device=request.input_ids.device,
    )
    if not filters:
        return process
    return filters if process is None else lambda logits, history: filters(process(logits, history), history)
