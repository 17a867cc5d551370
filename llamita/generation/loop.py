"""The loop that writes tokens: read, choose, stop or go on."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.errors import UsageError
from llamita.generation.options import Options, resolve
from llamita.generation.sampling import Sampler
from llamita.generation.stop import Row, Stop
from llamita.model.pretrained import PreTrainedModel
from llamita.tokenizer.protocol import Tokenizer


class Streamer(Protocol):
    """Told of the prompt, of every step, and of the end: transformers' streamers fit."""

    def put(self, value: Tensor) -> None:
        """Token ids on the CPU: the prompt (B, T), then each step (B,)."""
        ...

    def end(self) -> None:
        """Nothing more comes."""
        ...


class Feed:
    """What the model is to read next, and what it has read: ids or embeddings, their mask, the cache.

    A mask (B, cached + T) that shows everything is dropped, which spares every step its work.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
    ) -> None:
        self.model = model
        self.cache = past_key_values
        self.use_cache = use_cache
        self._ids, self._embeds = input_ids, inputs_embeds
        is_padded = attention_mask is not None and not bool((attention_mask == 1).all())
        self._mask = attention_mask if is_padded else None

    def logits(self) -> Tensor:
        """Let the model read on: the fp32 logits (B, V) of what comes next."""
        output = self.model(
            input_ids=None if self._embeds is not None else self._ids,
            inputs_embeds=self._embeds,
            attention_mask=self._mask,
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
            return_dict=True,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1].float()

    def append(self, step: Tensor) -> None:
        """Put the tokens (B,) behind what was read."""
        new = step[:, None]
        if self._mask is not None:
            self._mask = torch.cat((self._mask, torch.ones_like(new, dtype=self._mask.dtype)), dim=1)
        if self.cache is not None:
            self._ids, self._embeds = new, None
        elif self._embeds is not None:
            self._embeds = torch.cat((self._embeds, self.model.get_input_embeddings()(new)), dim=1)
        else:
            assert self._ids is not None
            self._ids = torch.cat((self._ids, new), dim=1)


# Not inference_mode: tokens made there could not be trained on afterwards.
@torch.no_grad()
def tokens(
    feed: Feed, *, choose: Callable[[Tensor], Tensor], stop: Stop, pad_token_id: int | None = None
) -> Iterator[Tensor]:
    """Write until every row has ended, one step (B,) at a time; `stop` knows what each row has come to."""
    while not stop.is_over:
        step = stop.padded(choose(feed.logits()), pad_token_id)  # (B,)
        stop.accept(step)
        yield step
        feed.append(step)


def generate(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    streamer: Streamer | None = None,
    tokenizer: Tokenizer | None = None,
    **flags: Any,
) -> Tensor:
    """Continue token ids (B, T): returns them with what was written, (B, T + new); called as transformers' `generate`.

    Rows that end early are filled with the padding token. With `inputs_embeds` (B, T, D) alone the result is what was
    written, (B, new). Flags: the fields of `llamita.generation.options.Options`; the checkpoint's
    generation_config.json gives those not named. Without a `seed` it draws as transformers does: the same
    torch.manual_seed gives the same tokens.

    attention_mask: (B, T), 0 for padding, which belongs on the left; guessed from the padding token when absent.
    past_key_values: a cache of the first tokens; the ids are the whole text, or with a longer mask the new part only.
    """
    options = resolve(flags, checkpoint=model.generation_config, config=model.config)
    if input_ids is None and inputs_embeds is None:
        input_ids = _beginning(model)
    given = _checked(input_ids, inputs_embeds)
    device = model.device
    input_ids = input_ids.to(device) if input_ids is not None else given.new_empty((len(given), 0), dtype=torch.long)
    if attention_mask is None and inputs_embeds is None:
        attention_mask = guessed_mask(input_ids, options)
    feed = Feed(
        model,
        _unread(input_ids, attention_mask, past_key_values),
        inputs_embeds=None if inputs_embeds is None else _unread(inputs_embeds.to(device), None, past_key_values),
        attention_mask=None if attention_mask is None else attention_mask.to(device),
        past_key_values=past_key_values,
        use_cache=options.use_cache,
    )
    limit = options.limit(input_ids.shape[1], given.shape[1], model.config)
    eos, stops = options.eos_token_ids, options.stops
    rows = [Row(limit, eos_token_ids=eos, strings=stops, tokenizer=tokenizer if stops else None) for _ in given]
    steps = tokens(feed, choose=sampler(options, len(rows), device), stop=Stop(rows), pad_token_id=options.padding)
    return torch.cat((input_ids, *_streamed(steps, input_ids, streamer)), dim=1)


def sampler(options: Options, rows: int, device: torch.device) -> Sampler:
    """The sampler that the flags describe; None switches a filter off, as in transformers."""
    if not options.do_sample:
        return Sampler(rows, temperature=0.0, device=device)
    return Sampler(
        rows,
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=0 if options.top_k is None else options.top_k,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=options.seed,
        device=device,
    )


def guessed_mask(input_ids: Tensor, options: Options) -> Tensor | None:
    """The mask (B, T) that the padding token implies, where it is not also an end token: transformers' rule."""
    pad = options.padding
    if pad is None or pad in options.eos_token_ids:
        return None
    return (input_ids != pad).long()


def _beginning(model: PreTrainedModel) -> Tensor:
    bos = model.generation_config.get("bos_token_id", model.config.bos_token_id)
    if bos is None:
        raise UsageError("there is nothing to continue, and the model has no first token: pass input_ids")
    return torch.tensor([[bos]])


def _checked(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The main input; raises UsageError for a wrong shape or dtype."""
    if input_ids is not None and (input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.numel() == 0):
        shape, dtype = tuple(input_ids.shape), input_ids.dtype
        raise UsageError(f"input_ids is {shape}, {dtype}: give whole numbers (batch, tokens), at least one of each")
    given = input_ids if inputs_embeds is None else inputs_embeds
    assert given is not None
    return given


def _unread(inputs: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    """What the cache does not hold of ids (B, T) or embeddings (B, T, D)."""
    if cache is None or (attention_mask is not None and attention_mask.shape[1] != inputs.shape[1]):
        return inputs
    if cache.length >= inputs.shape[1]:
        raise UsageError(
            f"the cache already holds {cache.length} tokens and the input has {inputs.shape[1]}: crop the cache to "
            "leave at least one to read"
        )
    return inputs[:, cache.length :]


def _streamed(steps: Iterator[Tensor], prompt: Tensor, streamer: Streamer | None) -> list[Tensor]:
    """All steps as columns (B, 1), each told to the streamer as it comes."""
    if streamer is None:
        return [step[:, None] for step in steps]
    streamer.put(prompt.cpu())
    columns = []
    for step in steps:
        streamer.put(step.cpu())
        columns.append(step[:, None])
    streamer.end()
    return columns
