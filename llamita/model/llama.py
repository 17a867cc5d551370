"""The LLaMA model (arXiv:2302.13971): from token ids to hidden states to logits.

Axes, here and everywhere: B batch, T tokens of this pass, S tokens attended to, D hidden, F feed-forward,
N query heads, K key/value heads, H head dim, V vocabulary.
"""

import warnings
from collections.abc import Collection
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.cache.dynamic import DynamicCache
from llamita.cache.foreign import adapted
from llamita.config import LlamaConfig
from llamita.context.arguments import check_tensors, from_arguments
from llamita.context.causal import Causal
from llamita.context.protocol import Context
from llamita.context.recording import Recording
from llamita.context.slots import check_cache_position
from llamita.errors import UsageError
from llamita.model import loss as losses
from llamita.model.chunked_loss import chunked_cross_entropy
from llamita.model.layers import LlamaDecoderLayer, LlamaRMSNorm, at_least_fp32
from llamita.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from llamita.model.pretrained import LlamaPreTrainedModel
from llamita.model.rope import LlamaRotaryEmbedding

Layers = bool | int | Collection[int] | None


class LlamaModel(LlamaPreTrainedModel):
    """Embedding, layers, final norm: token ids (B, T) to hidden states (B, T, D)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id if config.pad_token_id != -1 else None
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: Layers = None,
        output_hidden_states: Layers = None,
        return_dict: bool | None = None,
        context: Context | None = None,
        cache_position: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the tokens, after the final norm.

        Either the familiar arguments say where tokens stand and how they attend, or a `context` does.
        past_key_values: one of `llamita.cache`, transformers' DynamicCache or StaticCache, or (keys, values) by layer.
        cache_position (T,): taken where it says what the cache says. token_type_ids: taken, as there are no types.
        output_attentions, output_hidden_states: True, or the numbers of the layers to return.
        Raises ValueError unless exactly one of input_ids and inputs_embeds is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        if context is None:
            cache = self._cache(past_key_values, use_cache)
            if cache_position is not None:
                check_cache_position(cache_position, hidden_states.shape[1], cache)
            context = self._context(hidden_states, attention_mask, position_ids, cache, output_attentions)
        rotation = self.rotary_emb(context.positions, hidden_states.dtype)

        wanted = self._wanted("output_hidden_states", output_hidden_states, len(self.layers) + 1)
        seen: list[Tensor] = []
        for layer, block in enumerate(self.layers):
            if layer in wanted:
                seen.append(hidden_states)
            hidden_states = block(hidden_states, rotation, context)
        hidden_states = self.norm(hidden_states)
        if len(self.layers) in wanted:
            seen.append(hidden_states)

        cache = getattr(context, "cache", None)
        if cache is not past_key_values:
            cache = getattr(cache, "inner", cache)  # a ForeignCache: the caller gets back what it gave
        return self.finish(
            BaseModelOutputWithPast(
                last_hidden_state=hidden_states,
                past_key_values=cache,
                hidden_states=tuple(seen) if wanted else None,
                attentions=context.attentions if isinstance(context, Recording) else None,
            ),
            return_dict,
        )

    def _context(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        output_attentions: Layers,
    ) -> Causal | Recording:
        config = self.config
        context = from_arguments(
            embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            backend=config.attn_implementation,
            scale=config.softmax_scale,
            dropout=config.attention_dropout if self.training else 0.0,
            window=config.sliding_window,
        )
        recorded = self._wanted("output_attentions", output_attentions, len(self.layers))
        return Recording(context, recorded) if recorded else context

    def _cache(self, given: Any, use_cache: bool | None) -> Cache | None:
        """The cache of a pass: the one that is given, as one of our classes; a new one; or None."""
        cache = given if given is None or isinstance(given, Cache) else adapted(given)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.training and self.is_gradient_checkpointing:
            if use_cache or cache is not None:
                warnings.warn(
                    "recompute runs every layer twice and would append to the cache twice: use_cache is now False",
                    stacklevel=3,
                )
            return None
        return DynamicCache() if use_cache and cache is None else cache

    def _wanted(self, name: str, layers: Layers, count: int) -> Collection[int]:
        """The layers asked for, by the argument or by the config's old flag of that name."""
        if layers is None:
            layers = bool(self.config.extra.get(name, False))
        if isinstance(layers, bool):
            return range(count) if layers else ()
        layers = (layers,) if isinstance(layers, int) else layers
        if outside := [layer for layer in layers if not -count <= layer < count]:
            raise ValueError(f"{name} names {outside}, but there are {count}: give numbers from 0 to {count - 1}")
        return {layer % count for layer in layers}


class Shifted(TypedDict, total=False):
    """An argument that forward's signature does not name: trainers take any parameter with such a name for data."""

    shift_labels: Tensor | None


class LlamaForCausalLM(LlamaPreTrainedModel):
    """The language model: token ids (B, T) to logits (B, T, V) of what comes next."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: Layers = None,
        output_hidden_states: Layers = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        context: Context | None = None,
        cache_position: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **shifted: Unpack[Shifted],
    ) -> CausalLMOutputWithPast:
        """Logits in the model's dtype, and with labels the loss in fp32 (fp64 of fp64).

        labels: (B, T), -100 where nothing is to be learnt, moved by one here; or `shift_labels`, moved already.
        logits_to_keep: 0 for all positions, n for the last n, or an index: 1-D of positions, 2-D (B, kept) of
        positions per row, 2-D bool (B, T), whose logits (kept, V) lie end to end.
        num_items_in_batch: divide the summed loss by this rather than take the mean.
        """
        targets = losses.targets(labels, shifted)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            context=context,
            cache_position=cache_position,
            token_type_ids=token_type_ids,
        )
        logits = self.lm_head(keep(outputs.last_hidden_state, logits_to_keep))
        loss = None if targets is None else losses.cross_entropy(at_least_fp32(logits), targets, num_items_in_batch)
        return self.finish(
            CausalLMOutputWithPast(
                loss=loss,
                logits=logits,
                past_key_values=outputs.past_key_values,
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
            ),
            return_dict,
        )

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        chunk: int = 1024,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """The loss () that `forward(labels=...)` gives, with the logits of at most `chunk` tokens in memory."""
        hidden_states = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
            context=context,
        ).last_hidden_state
        targets = losses.shift(labels)
        return chunked_cross_entropy(hidden_states, self.lm_head, targets, chunk=chunk, num_items=num_items_in_batch)

    def last_hidden_state(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The last hidden states of token ids (B, T), which the head reads: (B, T, D)."""
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True).last_hidden_state

    def head(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self.lm_head(hidden_states)

    def first_layers(self, count: int) -> "LlamaForCausalLM":
        """A model of the first layers, the norm and the head of this one; it shares the weights.

        Raises UsageError if the model has fewer layers than `count`.
        """
        if not 1 <= count <= self.config.num_hidden_layers:
            raise UsageError(f"early exit after {count} layers of {self.config.num_hidden_layers}: give at most these")
        with torch.device("meta"):
            part = LlamaForCausalLM(self.config.replace(num_hidden_layers=count))
        part.model.embed_tokens, part.model.norm = self.model.embed_tokens, self.model.norm
        part.model.layers, part.model.rotary_emb = self.model.layers[:count], self.model.rotary_emb
        part.lm_head = self.lm_head
        return part.train(self.training)


def keep(hidden_states: Tensor, positions: int | Tensor) -> Tensor:
    """The hidden states (B, T, D) whose logits are wanted: see `logits_to_keep` of `LlamaForCausalLM.forward`."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    check_tensors(logits_to_keep=positions)
    if positions.ndim == 1:
        return hidden_states[:, positions]
    is_mask = positions.dtype == torch.bool  # rows may keep different counts, so they are laid end to end: (kept, D)
    return hidden_states[positions] if is_mask else torch.take_along_dim(hidden_states, positions[..., None], dim=1)
