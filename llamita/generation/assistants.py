"""Who guesses ahead, by the flags of a call: a draft model, the model's first layers, or the text itself."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from llamita.generation.hf_flags import DEFAULT_TOP_K, HABITS
from llamita.generation.request import GenerationRequest
from llamita.generation.speculative.hf_draws import HFDraftProposer, HFLookupProposer, HFProposer
from llamita.generation.speculative.proposers import (
    DraftModelProposer,
    DraftTree,
    EarlyExit,
    PromptLookupProposer,
    Proposer,
)
from llamita.model.llama import LlamaForCausalLM
from llamita.model.pretrained import PreTrainedModel
from llamita.sampling.history import LogitsProcessor
from llamita.sampling.params import SamplingParams
from llamita.sampling.per_row import LARGEST
from llamita.sampling.processor_list import LogitsProcessorList

TWICE = (  # what transformers' assistant does a second time: it is handed the target's, and has its own
    "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "watermarking_config",
)  # fmt: skip


def drafter(job: GenerationRequest, model: LlamaForCausalLM) -> Proposer:
    """What guesses in the rows of a batch."""
    options, assistant = job.options, _assistant(job, model)
    if assistant is None:
        return _lookup(job)
    guessing = _guessing(job, model, assistant)
    return guessing if options.draft_tree is None else DraftTree(guessing, branches=options.draft_tree)


def guesser(
    job: GenerationRequest, model: LlamaForCausalLM, settings: SamplingParams, process: LogitsProcessor | None
) -> HFProposer:
    """What guesses as transformers does, in one text that is drawn by these settings, which are the process."""
    options, assistant = job.options, _assistant(job, model)
    if assistant is None:
        ends, vocabulary = options.eos_token_ids, model.config.vocab_size
        return HFLookupProposer(_lookup(job), process=process, ends=ends, vocabulary=vocabulary)
    own = _completed(settings, options.top_k is None, assistant)
    ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or ())
    padding = options.pad_token_id
    padding = _saved(assistant).get("pad_token_id") if padding is None else padding
    return HFDraftProposer(
        _guessing(job, model, assistant), process=_twice(job, settings, own), ends=ends, padding=padding
    )


def _assistant(job: GenerationRequest, model: LlamaForCausalLM) -> LlamaForCausalLM | None:
    """The model that guesses, None where the text itself does: of several asked for the one that transformers takes."""
    if job.options.assistant_early_exit is not None:
        return model
    by_text = job.options.prompt_lookup_num_tokens is not None and job.options.draft_tree is None
    return None if by_text else job.assistant


def _lookup(job: GenerationRequest) -> PromptLookupProposer:
    options = job.options
    return PromptLookupProposer(
        length=min(options.prompt_lookup_num_tokens or 1, LARGEST), ngram=options.max_matching_ngram_size or 2
    )


def _guessing(job: GenerationRequest, model: LlamaForCausalLM, assistant: LlamaForCausalLM) -> DraftModelProposer:
    """The model that guesses, with its habits: those of the call, of its own generation config, or the defaults."""
    habits: dict[str, Any] = dict(HABITS)
    for said in (assistant.generation_config, vars(job.options)):
        habits |= {name: said[name] for name in HABITS if said.get(name) is not None}
    length, confidence = habits["num_assistant_tokens"], habits["assistant_confidence_threshold"]
    if job.options.assistant_early_exit is not None:
        return EarlyExit(model, layers=job.options.assistant_early_exit, length=length, confidence=confidence)
    return DraftModelProposer(assistant, length=length, confidence=confidence)


def _completed(settings: SamplingParams, has_no_top_k: bool, assistant: PreTrainedModel) -> SamplingParams:
    """The settings, and where they say nothing the assistant's generation config: how transformers' assistant draws."""
    saved = _saved(assistant)
    missing = [item.name for item in fields(SamplingParams) if getattr(settings, item.name) is None]
    own = {name: saved[name] for name in missing if saved.get(name) is not None}
    if has_no_top_k:
        own["top_k"] = saved.get("top_k", DEFAULT_TOP_K)
    return replace(settings, **own)


def _saved(assistant: PreTrainedModel) -> Mapping[str, Any]:
    config = assistant.config
    return assistant.generation_config or {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}


def _twice(job: GenerationRequest, settings: SamplingParams, own: SamplingParams) -> LogitsProcessor | None:
    """The target's settings, what they leave open by the assistant's own, and its own filters behind them."""
    process = job.process(replace(own, **{name: getattr(settings, name) for name in TWICE}), 1)
    filters = LogitsProcessorList(
        SamplingParams(do_sample=True, **{name: getattr(own, name) for name in TWICE}),
        rows=1,
        device=job.input_ids.device,
    )
    if not filters:
        return process
    return filters if process is None else lambda logits, history: filters(process(logits, history), history)
