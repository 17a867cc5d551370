"""`model.generate`, called as transformers' is: the same arguments and flags in, the same outputs out."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.cache.foreign import adapted
from llamita.errors import UsageError
from llamita.generation.hf_flags import GenerationFlags, resolve
from llamita.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from llamita.generation.request import Criterion, GenerationRequest, GenerationResult, unread
from llamita.generation.rules import ruled
from llamita.generation.strategies import search, speculate, write
from llamita.model.llama import LlamaForCausalLM
from llamita.model.pretrained import PreTrainedModel
from llamita.sampling.params import HFProcessor
from llamita.sampling.per_row import LARGEST
from llamita.tokenizer.huggingface import readable

Output = Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class Streamer(Protocol):
    """Told of the prompt, of every step, and of the end: transformers' streamers fit."""

    def put(self, value: Tensor) -> None:
        """Token ids on the CPU: the prompt (B, T), then each step (B,)."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


def generate(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    *,
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
    assistant_model: LlamaForCausalLM | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    **flags: Any,
) -> Output:
    """Continue token ids (B, T): returns them with what was written, (B, T + new), or with more beside.

    Rows that end early are filled with the padding token. With `inputs_embeds` (B, T, D) alone the result is what was
    written, (B, new). Flags: the fields of `llamita.generation.hf_flags.GenerationFlags`; `generation_config` (a
    dictionary, or transformers' object) gives those not named, and the checkpoint's generation_config.json the rest.
    Without a `seed` it draws as transformers does: the same torch.manual_seed gives the same tokens.

    attention_mask: (B, T), 0 for padding, which belongs on the left; guessed from the padding token when absent.
    past_key_values: a cache of the first tokens; the ids are the whole text, or with a longer mask the new part only.
    It may be transformers' DynamicCache or StaticCache too, which is filled, or (keys, values) by layer.
    position_ids: (B, T), of the input or its end; what is written counts on from the last. logits_to_keep: forward's,
    of every pass; only the last logits are looked at.
    assistant_model: a smaller model of the same tokens, which guesses ahead; `prompt_lookup_num_tokens` and
    `assistant_early_exit` guess without one. `draft_tree` has it guess several ways on.
    streamer: told of the prompts, then of every column (B,) of what is written, whatever the strategy; of beams, the
    best text's, once it is sure.
    tokenizer: ours or a fast one of transformers, for stop_strings, for the forms that a text must have (json_schema,
    regex, grammar, choice), and for token_healing, where the ids that are returned begin without what was dropped,
    which is written again.
    """
    flags = {**_fields(generation_config), "logits_processor": tuple(logits_processor), **flags}
    options = resolve(flags, checkpoint=model.generation_config, config=model.config)
    job = _job(model, options, input_ids, attention_mask, inputs_embeds, adapted(past_key_values))
    job.positions = _positions(job, position_ids)
    job.logits_to_keep = 1 if logits_to_keep is None else logits_to_keep
    job.tokenizer, job.criteria, job.assistant = readable(tokenizer), tuple(stopping_criteria), assistant_model
    job.negative = (negative_prompt_ids, negative_prompt_attention_mask)
    job = ruled(job)
    if streamer is not None:
        told = job.input_ids if options.num_beams > 1 else job.returned_ids  # of beams the best is told, one a prompt
        streamer.put(told.cpu())
        job.on_step = lambda step: streamer.put(step.cpu())
    written = _strategy(job)(job)
    if streamer is not None:
        streamer.end()
    sequences = torch.cat((job.returned_ids, written.tokens), dim=1)
    return written.output(sequences) if options.return_dict_in_generate else sequences


def _strategy(job: GenerationRequest) -> Callable[[GenerationRequest], GenerationResult]:
    """Which way of writing the flags ask for; raises UsageError for flags that exclude each other."""
    options = job.options
    has_model = job.assistant or options.assistant_early_exit
    is_guessing = has_model or options.prompt_lookup_num_tokens
    if options.draft_tree is not None and not has_model:
        raise UsageError("a draft_tree is of a model's guesses: pass assistant_model or assistant_early_exit")
    if options.num_beams > 1:
        if is_guessing:
            raise UsageError("beams and guessing ahead exclude each other: set num_beams=1, or leave the assistant out")
        return search
    if options.num_return_sequences > 1 and not options.do_sample:
        raise UsageError(
            f"num_return_sequences={options.num_return_sequences} would repeat one greedy text: set do_sample=True, "
            "or num_beams"
        )
    return speculate if is_guessing else write


def _job(
    model: PreTrainedModel,
    options: GenerationFlags,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    cache: Cache | None,
) -> GenerationRequest:
    if input_ids is None and inputs_embeds is None:
        input_ids = _beginning(model, options)
    given = _checked(input_ids, inputs_embeds)
    _check_ids(input_ids, options, model.config.vocab_size)
    device = model.device
    input_ids = input_ids.to(device) if input_ids is not None else given.new_empty((len(given), 0), dtype=torch.long)
    if attention_mask is None and inputs_embeds is None:
        attention_mask = guessed_mask(input_ids, options)
    return GenerationRequest(
        model=model,
        options=options,
        input_ids=input_ids,
        mask=None if attention_mask is None else attention_mask.to(device),
        embeds=None if inputs_embeds is None else inputs_embeds.to(device),
        cache=cache,
        limit=options.limit(input_ids.shape[1], given.shape[1], model.config),
    )


def _positions(job: GenerationRequest, position_ids: Tensor | None) -> Tensor | None:
    """The position ids (B | 1, T) that a call gives, checked; raises UsageError for another shape."""
    if position_ids is None:
        return None
    tokens = job.input_ids if job.embeds is None else job.embeds
    new = unread(tokens, job.mask, job.cache).shape[1]
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, len(tokens)) or position_ids.shape[1] < new:
        raise UsageError(
            f"position_ids is {tuple(position_ids.shape)} for an input of {tuple(tokens.shape[:2])}: give one a token"
        )
    return position_ids.to(job.input_ids.device)


def _fields(generation_config: Any) -> dict[str, Any]:
    """The flags of a generation config: a dictionary, an object with to_diff_dict or to_dict, or None."""
    if generation_config is None or isinstance(generation_config, dict):
        return dict(generation_config or {})
    read = getattr(generation_config, "to_diff_dict", None) or generation_config.to_dict
    return {
        name: value
        for name, value in read().items()
        if name != "transformers_version" and name[0] != "_" and value is not None
    }


def guessed_mask(input_ids: Tensor, options: GenerationFlags) -> Tensor | None:
    """The mask (B, T) that the padding token implies, where it is not also an end token: transformers' rule."""
    pad = options.padding
    if pad is None or pad in options.eos_token_ids:
        return None
    return (input_ids != pad).long()


def _beginning(model: PreTrainedModel, options: GenerationFlags) -> Tensor:
    bos = model.config.bos_token_id if options.bos_token_id is None else options.bos_token_id
    if bos is None:
        raise UsageError("there is nothing to continue, and the model has no first token: pass input_ids")
    return torch.tensor([[bos]])


def _check_ids(input_ids: Tensor | None, options: GenerationFlags, vocabulary: int) -> None:
    """Raise UsageError for ids that the model does not know: of the input, or what ended rows are filled with."""
    pad, rows = options.pad_token_id, 1 if input_ids is None else len(input_ids) * options.num_return_sequences
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
