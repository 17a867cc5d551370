"""The plan: a model whose short passes run as one program, and all others as before."""

from collections.abc import Iterator
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.cache.growing import GrowingCache
from llamita.errors import UnsupportedError
from llamita.fused.reading import Reading
from llamita.fused.step import Step, check_ids, packed_of
from llamita.kernels import program
from llamita.kernels.linear import DENSE, FEW
from llamita.kernels.pages import enlarge
from llamita.model.layers import LlamaDecoderLayer
from llamita.model.llama import LlamaForCausalLM
from llamita.model.outputs import CausalLMOutputWithPast

MOST_LOGITS = 256  # tokens, all rows together, whose logits are wanted
MOST_AT_ONCE = 1024  # tokens that a long prompt is read by


def fuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Let the model's short passes over a cache run as one program of CPU kernels; returns the model.

    Their arithmetic is fp32 between the weights, so their logits, in fp32, are nearer to the fp32 model's than those of
    the plain bf16 model, but not bit-equal to either. Weights that a state dict or an optimizer changes, or that move,
    are noticed; a single layer that is replaced, but for the first, is not: fuse last, or again. Raises
    UnsupportedError for models that `why_not` has a reason against.
    """
    if (reason := why_not(model)) is not None:
        raise UnsupportedError(f"this model cannot be fused: {reason}; run it without")
    unfuse(model)
    for tensor in {id(tensor): tensor for tensor in _matrices(model)}.values():
        enlarge(tensor)
    model.forward = FusedForward(model)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _matrices(model: LlamaForCausalLM) -> Iterator[Tensor]:
    """The memory that every step reads from end to end."""
    for module in model.modules():
        packed = packed_of(module)
        if packed is not None:
            yield packed.stream
        elif isinstance(module, nn.Linear):
            yield module.weight.detach()


def unfuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Take the plan back; returns the model."""
    model.__dict__.pop("forward", None)
    return model


def why_not(model: LlamaForCausalLM) -> str | None:
    """What keeps a model from being fused, or None."""
    config = model.config
    if model.device.type != "cpu":
        return f"it is on {model.device}, and the kernels are the CPU's"
    if config.attn_implementation == "fixed":
        return "it is in batch-invariant mode, and the kernels round by the number of rows"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, and the kernels know silu"
    if config.rope_parameters.depends_on_length:
        return f"its rotary type {config.rope_parameters.rope_type} depends on the length"
    if config.head_dim % 16 or config.head_dim > 256:
        return f"its heads are {config.head_dim} wide, and the kernels know multiples of 16 up to 256"
    if model.dtype not in DENSE:
        return f"its dtype is {model.dtype}"
    for name, module in model.named_modules():
        if not name.endswith(("_proj", "lm_head")) or packed_of(module) is not None:
            continue
        if type(module) is not nn.Linear or module.weight.dtype not in DENSE:
            return f"{name} is a {type(module).__name__} that the kernels do not know"
    return program.why_not()


class FusedForward:
    """Stands in for a model's forward, and takes the same arguments."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._plan: _Plan | None = None
        self._lock = Lock()  # a step works in buffers of its own

    def __getstate__(self) -> LlamaForCausalLM:
        return self._model  # a copy of the model makes its own plan

    def __setstate__(self, model: LlamaForCausalLM) -> None:
        self._model, self._plan, self._lock = model, None, Lock()

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
        """The kernels' logits where they can give what is asked for, else the plain model's outputs."""
        asks_more = position_ids is not None or others or any(x is not None and x is not False for x in more.values())
        if past_key_values is None and self._begins_cache(use_cache):
            past_key_values = GrowingCache()
        if input_ids is not None and not asks_more and isinstance(past_key_values, GrowingCache):
            logits = self._logits(input_ids, attention_mask, past_key_values, logits_to_keep)
            if logits is not None:
                output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
                return self._model.finish(output, return_dict)
        return type(self._model).forward(
            self._model, input_ids, attention_mask, position_ids, past_key_values, *others,
            use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=return_dict, **more,
        )  # fmt: skip

    def _begins_cache(self, use_cache: bool | None) -> bool:
        use_cache = self._model.config.use_cache if use_cache is None else use_cache
        return use_cache and not self._model.training and not torch.is_grad_enabled()

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: GrowingCache, keep: int | Tensor) -> Tensor | None:
        """The logits (B, kept, V) in fp32, or None where the pass is not one for kernels."""
        config, first = self._model.config, None
        if self._plan is None or self._plan.is_stale():
            self._plan = _Plan(self._model)
        plan = self._plan
        if self._model.training or torch.is_grad_enabled() or any(plan.hooks):  # hooks: somebody watches a layer
            return None
        if not isinstance(keep, int) or cache.unrotated or ids.ndim != 2 or not ids.numel():
            return None
        kept = min(keep or ids.shape[1], ids.shape[1])
        if ids.shape[0] * kept > MOST_LOGITS:
            return None
        if mask is not None:
            first = _padding(mask, cache.length + ids.shape[1])
            if first is None:
                return None
        if not len(cache):
            heads, layers = config.num_key_value_heads, config.num_hidden_layers
            cache.begin(layers, batch=ids.shape[0], heads=heads, width=config.head_dim, dtype=plan.dtype)
        if (ids.shape[0], plan.dtype, config.num_hidden_layers) != _kind(cache):
            return None
        check_ids(ids, config.vocab_size)
        with self._lock:
            start = cache.length
            try:
                return plan.read(ids, cache, first, kept)
            except BaseException:  # Ctrl-C between two parts of a prompt
                cache.crop(start)
                raise


def _kind(cache: GrowingCache) -> tuple[int, torch.dtype, int]:
    """Rows, dtype and layers of a cache."""
    keys = cache.rooms[0][0]
    return keys.shape[0], keys.dtype, len(cache)


class _Plan:
    """What reads tokens, made for a model's weights where they lie and its layers as they are."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self._reading = Reading(model)
        self._steps: dict[tuple[int, int, int], Step] = {}
        attention = cast("LlamaDecoderLayer", model.model.layers[0]).self_attn
        self._places = (model._modules, model.model._modules, attention._modules)
        self._seen = self._look()
        self.dtype = model.dtype
        inner = [module for module in model.modules() if module is not model]
        self.hooks = [hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)]

    def _look(self) -> tuple[object, ...]:
        model, inner, attention = self._places
        embedding = cast("nn.Module", inner["embed_tokens"])
        packed = packed_of(embedding)
        weight = embedding._parameters["weight"] if packed is None else packed.stream
        norm = cast("Tensor", cast("nn.Module", inner["norm"])._parameters["weight"])
        changes = 0 if norm.is_inference() else norm._version  # counts what is done to it in place
        return cast("Tensor", weight).data_ptr(), changes, attention["q_proj"], model["lm_head"]

    def is_stale(self) -> bool:
        """Whether anything is not where it was; looked at in every step."""
        return self._look() != self._seen

    def read(self, ids: Tensor, cache: GrowingCache, first: Tensor | None, kept: int) -> Tensor:
        """The logits of the last tokens of ids (B, T), which are read in parts of at most `MOST_AT_ONCE`."""
        if ids.numel() <= FEW:
            return self._step(ids, kept).run(ids, cache, first)
        tokens, size = ids.shape[1], max(kept, MOST_AT_ONCE // ids.shape[0])
        behind = tokens if tokens <= size else max(tokens % size, kept)
        parts, last = ids[:, : tokens - behind].split(size, dim=1), ids[:, tokens - behind :]
        for part in parts if behind < tokens else ():
            self._reading.run(part, cache, first, 1)
        if last.numel() <= FEW:
            return self._step(last, kept).run(last, cache, first)
        return self._reading.run(last, cache, first, kept)

    def _step(self, ids: Tensor, kept: int) -> Step:
        batch, tokens = ids.shape
        key = (batch, tokens, kept)
        if key not in self._steps:
            self._steps[key] = Step(self._model, batch=batch, tokens=tokens, kept=kept, dtype=self.dtype)
        return self._steps[key]


def _padding(mask: Tensor, slots: int) -> Tensor | None:
    """How much padding stands left of each row (B,), or None for a mask that hides anything else."""
    if mask.ndim != 2 or mask.shape[1] != slots:
        return None
    shown = mask.bool()
    first = shown.long().argmax(dim=1)
    return first if bool((shown.sum(dim=1) == slots - first).all()) else None
