"""Running the model: unread tokens go in, the logits of the next token come out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llamita.cache.cache import Cache
from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.context.tree import Tree
from llamita.generation.protocol import LanguageModel
from llamita.sampling.finite import not_finite


def finite(logits: Tensor) -> Tensor:
    """The logits (..., V) that a model gave, as they are; raises NotFiniteError unless all of them are finite."""
    if logits.is_cpu and logits.dtype == torch.float32 and not logits.requires_grad:
        numbers = logits.numpy()  # whose largest and least cost less than a sum, and are NaN where any is
        is_finite = all(math.isfinite(numbers.item(one)) for one in (numbers.argmax(), numbers.argmin()))
    else:  # one sum, which a NaN or an infinity always shows in, costs less than a look at every number
        is_finite = math.isfinite(logits.sum(dtype=torch.float32).item()) or bool(logits.isfinite().all())
    if not is_finite:
        raise not_finite()
    return logits


class ModelRunner:
    """Runs the model over a batch, step by step; holds the unread tokens, the mask and the cache.

    A mask (B, cached + T) without padding is dropped, so that no step has to read it.
    chunk: read a long prompt in parts of this many tokens. recorded: outputs of the model to record at each step,
    "attentions" or "hidden_states". check: a function that all logits (B, V) must pass. position_ids: (B | 1, T) of the
    input; later ones count on by one; None counts by the mask. logits_to_keep: forward's, of every pass. run: what its
    passes have in common, if nobody else changes the model between them.
    """

    def __init__(
        self,
        model: LanguageModel,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        chunk: int | None = None,
        recorded: tuple[str, ...] = (),
        check: Callable[[Tensor], Tensor] = finite,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 1,
        run: object | None = None,
    ) -> None:
        self.model, self.run = model, run
        self.cache = past_key_values
        self.use_cache = use_cache
        self.check = check
        self.logits_to_keep = logits_to_keep
        self._positions = position_ids
        self.chunk = chunk if use_cache else None
        self.recorded: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in recorded}
        self._ids, self._embeds = input_ids, inputs_embeds
        is_padded = attention_mask is not None and not bool((attention_mask == 1).all())
        self._mask = attention_mask if is_padded else None

    def logits(self) -> Tensor:
        """Read the unread tokens; returns the fp32 logits (B, V) of the next token."""
        return self.native().float()

    def native(self) -> Tensor:
        """Read the unread tokens; returns the logits (B, V) in the model's own dtype."""
        name, unread = ("input_ids", self._ids) if self._embeds is None else ("inputs_embeds", self._embeds)
        assert unread is not None
        parts = (unread,) if self.chunk is None or self.chunk >= unread.shape[1] else unread.split(self.chunk, dim=1)
        later = unread.shape[1]  # tokens after the part
        output = None
        for part in parts:
            later -= part.shape[1]
            positions = _without_last(self._positions, later)
            positions = None if positions is None else positions[:, positions.shape[1] - part.shape[1] :]
            output = self._read(_without_last(self._mask, later), position_ids=positions, **{name: part})
        assert output is not None
        for name, steps in self.recorded.items():
            steps.append(output[name])
        return self.check(output.logits.select(1, -1))

    def _read(self, mask: Tensor | None, **inputs: Tensor | None) -> Any:
        cache = self.cache
        if isinstance(cache, GrowingCache):
            cache.run = self.run
        try:
            output = self.model(
                **inputs,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=self.use_cache,
                logits_to_keep=self.logits_to_keep,
                return_dict=True,
                **{f"output_{name}": True for name in self.recorded},
            )
        finally:
            if isinstance(cache, GrowingCache):
                cache.run = None
        self.cache = output.past_key_values
        return output

    def append(self, step: Tensor) -> None:
        """Append the tokens (B,) of a step, to be read next."""
        new = step.unsqueeze(1)
        if self._mask is not None:
            self._mask = torch.cat((self._mask, torch.ones_like(new, dtype=self._mask.dtype)), dim=1)
        if self._positions is not None:
            self._positions = torch.cat((self._positions, self._positions[:, -1:] + 1), dim=1)
        if self.cache is not None:
            self._ids, self._embeds = new, None
        elif self._embeds is not None:
            self._embeds = torch.cat((self._embeds, self.model.get_input_embeddings()(new)), dim=1)
        else:
            assert self._ids is not None
            self._ids = torch.cat((self._ids, new), dim=1)


def _without_last(x: Tensor | None, count: int) -> Tensor | None:
    """The columns of x (B, T) but the last `count`."""
    return x if x is None or not count else x[:, :-count]


def read_ragged(
    model: LanguageModel,
    tokens: Tensor,
    real: Tensor,
    cache: DynamicCache,
    *,
    keep: int = 1,
    parents: Sequence[int] | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Read tokens (B, T) that the cache lacks, of texts with slots (B, S); returns the last logits (B, keep, V).

    parents: the tokens end with drafts, which are not in `real`; the parent of each (see `context.tree.Tree`).
    positions: (B, T); None counts the real slots.
    """
    config = model.config
    if parents:
        scale, window = config.softmax_scale, config.sliding_window
        tree = Tree(real, parents, cache, backend=config.attn_implementation, scale=scale, window=window)
        return finite(model(tokens, context=tree, logits_to_keep=keep, return_dict=True).logits)
    mask = None if bool(real.all()) else real
    output = model(
        tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
        return_dict=True,
    )
    return finite(output.logits)
