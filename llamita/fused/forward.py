"""The plan: a model whose short passes run as one program, and all others as before."""

from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.cache.growing import GrowingCache
from llamita.errors import UnsupportedError
from llamita.fused.step import ATTEND, Step, packed_of
from llamita.kernels.linear import DENSE
from llamita.model.layers import LlamaDecoderLayer
from llamita.model.llama import LlamaForCausalLM
from llamita.model.outputs import CausalLMOutputWithPast

MOST_ROWS = 16  # tokens of a pass, all rows together, that the kernels are faster for


def fuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Let the model's short passes over a cache run as one program of CPU kernels; returns the model.

    Their arithmetic is fp32 between the weights, so their logits, in fp32, are nearer to the fp32 model's than those of
    the plain bf16 model, but not bit-equal to either. The program reads the weights where they lie: fuse last, and again
    after the norms' weights have changed. Raises UnsupportedError for models that `why_not` has a reason against.
    """
    if (reason := why_not(model)) is not None:
        raise UnsupportedError(f"this model cannot be fused: {reason}; run it without")
    unfuse(model)
    model.forward = FusedForward(model)
    return model


def unfuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Take the plan back; returns the model."""
    model.__dict__.pop("forward", None)
    return model


def why_not(model: LlamaForCausalLM) -> str | None:
    """What keeps a model from being fused, or None."""
    config = model.config
    if model.device.type != "cpu":
        return f"it is on {model.device}, and the kernels are the CPU's"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, and the kernels know silu"
    if config.rope_parameters.depends_on_length:
        return f"its rotary type {config.rope_parameters.rope_type} depends on the length"
    if config.head_dim % 16:
        return f"its heads are {config.head_dim} wide, which is no multiple of 16"
    for name, module in model.named_modules():
        if name.endswith(("_proj", "lm_head")) and packed_of(module) is None:
            if type(module) is not nn.Linear or module.weight.dtype not in DENSE:
                return f"{name} is a {type(module).__name__} that the kernels do not know"
    return None


class FusedForward:
    """Stands in for a model's forward, and takes the same arguments."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._steps: dict[tuple[int, int, int, torch.dtype], Step] = {}
        self._weights = _whereabouts(model)
        inner = [module for module in model.modules() if module is not model]
        self._hooks = [hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._lock = Lock()  # a step works in buffers of its own

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        *others: Any,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """The program's logits where it can give what is asked for, else the plain model's outputs."""
        asks_more = position_ids is not None or others or any(value not in (None, False) for value in more.values())
        if input_ids is not None and isinstance(logits_to_keep, int) and not asks_more:
            logits = self._logits(input_ids, attention_mask, past_key_values, logits_to_keep)
            if logits is not None:
                output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
                return self._model.finish(output, return_dict)
        if past_key_values is None and self._begins_cache(use_cache):
            past_key_values = GrowingCache()
        return type(self._model).forward(
            self._model, input_ids, attention_mask, position_ids, past_key_values, *others,
            use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=return_dict, **more,
        )  # fmt: skip

    def _begins_cache(self, use_cache: bool | None) -> bool:
        use_cache = self._model.config.use_cache if use_cache is None else use_cache
        return use_cache and not self._model.training and not torch.is_grad_enabled()

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: Cache | None, kept: int) -> Tensor | None:
        """The program's logits (B, kept, V), or None where the pass is none of its."""
        if not isinstance(cache, GrowingCache) or len(cache) != len(self._model.model.layers) or not cache.length:
            return None
        keys = cache.rooms[0][0]
        if ids.numel() > MOST_ROWS or not ids.numel() or cache.unrotated or keys.dtype not in ATTEND:
            return None
        if self._model.training or torch.is_grad_enabled() or ids.shape[0] != keys.shape[0]:
            return None
        if any(self._hooks):  # somebody watches a layer
            return None
        first = None
        if mask is not None:
            first = _padding(mask, cache.length + ids.shape[1])
            if first is None:
                return None
        with self._lock:
            return self._step(ids, kept, keys.dtype).run(ids, cache, first)

    def _step(self, ids: Tensor, kept: int, dtype: torch.dtype) -> Step:
        if (weights := _whereabouts(self._model)) != self._weights:
            self._steps, self._weights = {}, weights
        batch, tokens = ids.shape
        key = (batch, tokens, min(kept or tokens, tokens), dtype)
        if key not in self._steps:
            self._steps[key] = Step(self._model, batch=batch, tokens=tokens, kept=key[2], dtype=dtype)
        return self._steps[key]


def _whereabouts(model: LlamaForCausalLM) -> tuple[int, ...]:
    """What differs once a model's weights lie elsewhere, or its layers are others."""
    attention, embedding = cast("LlamaDecoderLayer", model.model.layers[0]).self_attn, model.model.embed_tokens
    packed = packed_of(embedding)
    weight = embedding.weight if packed is None else packed.stream
    return (weight.data_ptr(), id(attention.q_proj), id(model.lm_head))


def _padding(mask: Tensor, slots: int) -> Tensor | None:
    """How much padding stands left of each row (B,), or None for a mask that hides anything else."""
    if mask.ndim != 2 or mask.shape[1] != slots:
        return None
    shown = mask.bool()
    first = shown.long().argmax(dim=1)
    return first if bool((shown.sum(dim=1) == slots - first).all()) else None
