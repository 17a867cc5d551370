"""`model.generate`, called as transformers' is: the same arguments and flags in, the same outputs out."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from llamita import checks
from llamita.cache.cache import Cache
from llamita.cache.foreign import ForeignCache, adapted
from llamita.context.arguments import check_tensors
from llamita.errors import UsageError
from llamita.generation.hf_flags import resolve
from llamita.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from llamita.generation.plan import plan
from llamita.generation.prefix_cache import Prefix
from llamita.generation.protocol import LanguageModel
from llamita.generation.request import Criterion, GenerationRequest, unread
from llamita.generation.run import GenerationResult, Run
from llamita.generation.settings import GenerationSettings
from llamita.model.generation_config import fields_of
from llamita.sampling.kinds import check_functions
from llamita.sampling.params import HFProcessor
from llamita.sampling.per_row import LARGEST
from llamita.structured.token_tables import TokenTables
from llamita.tokenizer.huggingface import readable

Output = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class Streamer(Protocol):
    """Receives the prompt, every step, and the end; transformers' streamers fit."""

    def put(self, value: Tensor) -> None:
        """Token ids on the CPU: the prompt (B, T), then each step (B,)."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


def generate(
    model: LanguageModel,
    input_ids: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Any = None,
    position_ids: Tensor | None = None,
    logits_to_keep: int | Tensor | None = None,
    streamer: Streamer | None = None,
    tokenizer: Any = None,
    generation_config: Any = None,
    stopping_criteria: Sequence[Criterion] = (),
    logits_processor: Sequence[HFProcessor] = (),
    assistant_model: LanguageModel | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    prefix: Prefix | None = None,
    **flags: Any,
) -> Output:
    """Continue token ids (B, T): returns prompt and new tokens, (B, T + new), or a record of all outputs.

    Rows that end early are filled with the padding token. With `inputs_embeds` (B, T, D) alone the result is the
    new tokens, (B, new). Flags: the fields of `llamita.generation.settings.GenerationSettings`; `generation_config` (a
    dictionary, or transformers' object) gives defaults for these, the checkpoint's generation_config.json for the rest.
    Without a `seed` it draws as transformers does: the same torch.manual_seed gives the same tokens.

    inputs: transformers' name of `input_ids`. labels: of a batch that is handed over whole, without effect.
    attention_mask: (B, T), 0 for padding, which belongs on the left; inferred from the padding token when absent.
    past_key_values: a cache of the first tokens; the ids are the whole text, or with a longer mask the new part only.
    It may be transformers' DynamicCache or StaticCache too, which is filled, or (keys, values) by layer.
    position_ids: (B, T), of the input or its end; new tokens count on from the last. logits_to_keep: forward's, of
    every pass; only the last logits are used.
    assistant_model: a smaller model of the same tokens, which proposes drafts; `prompt_lookup_num_tokens` and
    `assistant_early_exit` need none. `draft_tree` makes its drafts a tree.
    streamer: receives the prompts, then every column (B,) of new tokens, under every strategy; of beams, the tokens of
    the best text, once they are final.
    tokenizer: ours or a fast one of transformers, for stop_strings, for json_schema, regex, grammar and choice, for
    token_healing (the returned ids then lack the dropped tokens, which are written again), and for logprobs, the
    number of most probable alternatives to record.
    prefix: from `LLM.new_prefix`; a text that begins like the last one with it reuses the cache.
    Raises UsageError for arguments and flags that are wrong or contradict each other, and UnsupportedError for what
    the strategy does not do.
    """
    if inputs is not None and input_ids is not None:
        raise UsageError("inputs and input_ids are two names of one argument: give one of them")
    input_ids = inputs if input_ids is None else input_ids
    check_tensors(
        input_ids=input_ids,
        attention_mask=attention_mask,
        inputs_embeds=inputs_embeds,
        position_ids=position_ids,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask,
    )
    flags = {
        **fields_of(generation_config),
        "logits_processor": check_functions("logits_processor", logits_processor),
        **flags,
    }
    settings = resolve(flags, checkpoint=model.generation_config, config=model.config)
    request = _request(model, settings, input_ids, attention_mask, inputs_embeds, adapted(past_key_values))
    request.positions = _positions(request, position_ids)
    request.logits_to_keep = 1 if logits_to_keep is None else logits_to_keep
    if isinstance(logits_to_keep, int):
        checks.not_negative("logits_to_keep", logits_to_keep)
    read = readable(tokenizer)
    request.tables = None if read is None else TokenTables(read)
    request.criteria = check_functions("stopping_criteria", stopping_criteria)
    request.assistant = assistant_model
    request.negative = (negative_prompt_ids, negative_prompt_attention_mask)
    if prefix is not None:
        _take_prefix(request, prefix)
    request.is_private = streamer is None
    if streamer is not None:
        request.on_step = lambda step: streamer.put(step.cpu())
    run = plan(request)
    result = run.finish() if streamer is None else _finish_streaming(run, streamer)
    sequences = torch.cat((run.request.returned_ids, result.tokens), dim=1)
    return _output(run, result, sequences) if settings.return_dict_in_generate else sequences


def _finish_streaming(run: Run, streamer: Streamer) -> GenerationResult:
    """The result of a run whose steps a streamer receives: it gets the prompts before them, and the end after them."""
    has_beams = run.request.settings.num_beams > 1  # of which only the best text is streamed
    streamer.put((run.request.input_ids if has_beams else run.request.returned_ids).cpu())
    result = run.finish()
    streamer.end()
    return result


def _output(run: Run, result: GenerationResult, sequences: Tensor) -> Output:
    """transformers' record of these sequences (B * returned, T + new)."""
    runner = result.runner
    recorded: dict[str, Any] = {} if runner is None else {name: tuple(steps) for name, steps in runner.recorded.items()}
    cache = None if runner is None else runner.cache
    cache = cache.inner if isinstance(cache, ForeignCache) else cache
    recorder = result.recorder
    scores, logits = (None, None) if recorder is None else (recorder.scores, recorder.logits)
    common: dict[str, Any] = {"scores": scores, "logits": logits, "past_key_values": cache}
    if result.beams is None:
        measured = {"acceptance": run.acceptance, "logprobs": result.logprobs}
        return GenerateDecoderOnlyOutput(sequences, **common, **recorded, **measured)
    indices, ranking = result.beams
    ranking = None if scores is None else ranking
    return GenerateBeamDecoderOnlyOutput(
        sequences, sequences_scores=ranking, beam_indices=indices, **common, **recorded
    )


def _request(
    model: LanguageModel,
    settings: GenerationSettings,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    cache: Cache | None,
) -> GenerationRequest:
    if input_ids is None and inputs_embeds is None:
        input_ids = _beginning(model, settings)
    given = _checked(input_ids, inputs_embeds)
    _check_ids(input_ids, settings, model.config.vocab_size)
    device = model.device
    input_ids = input_ids.to(device) if input_ids is not None else given.new_empty((len(given), 0), dtype=torch.long)
    if attention_mask is not None:
        _check_mask(attention_mask, given)
    elif inputs_embeds is None:
        attention_mask = inferred_mask(input_ids, settings)
    embedded = 0 if inputs_embeds is None else inputs_embeds.shape[1]

    def limit(_: int, columns: int) -> int:
        return settings.limit(columns, embedded or columns, model.config)

    limit(0, input_ids.shape[1])  # a wrong limit is refused before anything else
    return GenerationRequest(
        model=model,
        settings=settings,
        input_ids=input_ids,
        limit=limit,
        mask=None if attention_mask is None else attention_mask.to(device),
        embeds=None if inputs_embeds is None else inputs_embeds.to(device),
        cache=cache,
        repeats_hf_draws=True,
    )


def _check_mask(mask: Tensor, given: Tensor) -> None:
    """Raise UsageError for a mask that does not cover the input (B, T, ...)."""
    rows, tokens = given.shape[:2]
    if mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] < tokens:
        raise UsageError(
            f"attention_mask is {tuple(mask.shape)} for an input of {(rows, tokens)}: give one number a token"
        )


def _take_prefix(request: GenerationRequest, prefix: Prefix) -> None:
    """Give the request a prefix. Raises UsageError for several prompts, padding, or a cache."""
    is_padded = request.mask is not None and not bool(request.mask.all())
    texts = len(request.input_ids) * request.settings.num_return_sequences
    if texts > 1 or is_padded or request.cache is not None:
        raise UsageError("a prefix is of one text: pass one prompt without padding, and no cache with it")
    request.prefix, request.prompts = prefix, request.input_ids.tolist()


def _positions(request: GenerationRequest, position_ids: Tensor | None) -> Tensor | None:
    """The position ids (B | 1, T) that a call gives, checked; raises UsageError for another shape."""
    if position_ids is None:
        return None
    tokens = request.input_ids if request.embeds is None else request.embeds
    new = unread(tokens, request.mask, request.cache).shape[1]
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, len(tokens)) or position_ids.shape[1] < new:
        raise UsageError(
            f"position_ids is {tuple(position_ids.shape)} for an input of {tuple(tokens.shape[:2])}: give one a token"
        )
    return position_ids.to(request.input_ids.device)


def inferred_mask(input_ids: Tensor, settings: GenerationSettings) -> Tensor | None:
    """The mask (B, T) that the padding token implies, where it is not also an end token: transformers' rule."""
    pad = settings.padding
    if pad is None or pad in settings.eos_token_ids:
        return None
    return (input_ids != pad).long()


def _beginning(model: LanguageModel, settings: GenerationSettings) -> Tensor:
    bos = model.config.bos_token_id if settings.bos_token_id is None else settings.bos_token_id
    if bos is None:
        raise UsageError("there is nothing to continue, and the model has no first token: pass input_ids")
    return torch.tensor([[bos]], device=model.device)


def _check_ids(input_ids: Tensor | None, settings: GenerationSettings, vocabulary: int) -> None:
    """Raise UsageError for ids that the model does not know: of the input, or what ended rows are filled with."""
    pad, rows = settings.pad_token_id, 1 if input_ids is None else len(input_ids) * settings.num_return_sequences
    if pad is not None and pad >= vocabulary and (rows > 1 or pad > LARGEST):
        raise UsageError(f"pad_token_id {pad} is outside the vocabulary of {vocabulary}: name one of its tokens")
    lowest, highest = (0, 0) if input_ids is None else map(int, input_ids.aminmax())
    if not 0 <= lowest <= highest < vocabulary:
        outside = lowest if lowest < 0 else highest
        raise UsageError(f"token id {outside} is outside the vocabulary of {vocabulary}: encode the text with its own")


def _checked(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The main input; raises UsageError for a wrong shape or dtype."""
    if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.numel() == 0):
        shape, dtype = tuple(input_ids.shape), input_ids.dtype
        raise UsageError(f"input_ids is {shape}, {dtype}: give whole numbers (batch, tokens), at least one of each")
    given = input_ids if inputs_embeds is None else inputs_embeds
    assert given is not None
    return given
