"""The plan `kernels`: passes over a cache run as one program of CPU kernels, all others as before."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.cache.growing import GrowingCache
from llamita.cache.paged import PagedCache
from llamita.context.batch import BatchLayout
from llamita.context.paged import Paged
from llamita.context.protocol import Context
from llamita.errors import UnsupportedError
from llamita.kernels.cpu.runtime.huge_pages import collapse
from llamita.model import plan
from llamita.model.llama import LlamaForCausalLM
from llamita.model.outputs import CausalLMOutputWithPast
from llamita.plans.cpu.called import is_ours, is_transformed
from llamita.plans.cpu.parts import unsupported_reason
from llamita.plans.cpu.passes import ModelParts, Pass, check_ids
from llamita.plans.cpu.watch import Watch
from llamita.plans.cpu.weights import matrix_of
from llamita.plans.cpu.workspace import Workspace

ASK_MORE = ("output_attentions", "output_hidden_states")  # what a config may ask for in every pass
MOST_AT_ONCE = 512  # tokens, all rows together, that a long prompt is read by
TRACED = "programs of the CPU's kernels are compiled already: unfuse(model) before compiling torch's pass"
PROGRAMS = 160  # numbers of tokens whose programs are kept: those of an engine's steps, 1 to 128, and some more


def fuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Run the model's passes over a cache as programs of CPU kernels; returns the model.

    Values between the weights are fp32, so the logits (fp32) are nearer to the fp32 model's than those of the plain
    bf16 model, but bit-equal to neither. Every pass checks whether the model has changed: weights that changed, moved
    or were replaced, other modules, hooks, a patched forward. While it has something that the kernels do not know,
    torch runs it. Raises UnsupportedError for models that `unsupported_reason` gives a reason for.
    """
    if (reason := unsupported_reason(model)) is not None:
        raise UnsupportedError(f"this model cannot be fused: {reason}; run it without")
    plan.check(model, "kernels", [model])
    matrices = (matrix_of(module) for module in model.modules())
    collapse({matrix.data_ptr(): matrix for matrix in matrices if matrix is not None}.values())
    plan.apply(model, "kernels", [FusedForward(model)])
    return model


def unfuse(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Undo this plan, and no other; returns the model."""
    if is_fused(model):
        plan.remove(model, "kernels")
    return model


def is_fused(model: nn.Module) -> bool:
    """Whether the model's passes run as programs of kernels."""
    return plan.plan_of(model) == "kernels"


class FusedForward(plan.StandIn):
    """Replaces a model's forward, with the same arguments."""

    plan = "kernels"
    module: LlamaForCausalLM

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(model)
        self._programs: _Programs | None = None
        self._run: tuple[object, _Programs] | None = None  # of the pass before, and the programs that it found
        self._paged: tuple[object, _Programs, ref[PagedCache]] | None = None  # the same of one over a paged cache
        self._lock = Lock()  # a step works in buffers of its own

    def __getstate__(self) -> LlamaForCausalLM:
        return self.module  # a copy of the model makes its own programs

    def __setstate__(self, model: LlamaForCausalLM) -> None:
        self.module, self._programs, self._run, self._paged, self._lock = model, None, None, None, Lock()

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
        context: Context | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """The kernels' logits where they can do the pass, else the plain model's outputs."""
        if isinstance(context, Paged) and input_ids is not None:
            logits = _untraced(self._paged_logits)(input_ids, context, logits_to_keep)
            if logits is not None:
                return self.module.finish(CausalLMOutputWithPast(logits=logits), return_dict)
        more = more if context is None else {**more, "context": context}
        asks_more = position_ids is not None or others or any(x is not None and x is not False for x in more.values())
        if past_key_values is None and self._begins_cache(use_cache):
            past_key_values = GrowingCache()
        if input_ids is not None and not asks_more and isinstance(past_key_values, GrowingCache):
            logits = _untraced(self._logits)(input_ids, attention_mask, past_key_values, logits_to_keep)
            if logits is not None:
                output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
                return self.module.finish(output, return_dict)
        return self.plain(
            input_ids, attention_mask, position_ids, past_key_values, *others,
            use_cache=use_cache, logits_to_keep=logits_to_keep, return_dict=return_dict, **more,
        )  # fmt: skip

    def _begins_cache(self, use_cache: bool | None) -> bool:
        use_cache = self.module.config.use_cache if use_cache is None else use_cache
        return use_cache and not self.module.training and not torch.is_grad_enabled()

    def _current_programs(self) -> "_Programs | None":
        """The programs for the model as it is now, or None where the kernels do not know it."""
        if self._programs is None or self._programs.watch.has_changed():
            self._programs = None if unsupported_reason(self.module) else _Programs(self.module)
        return self._programs

    def _programs_for(self, ids: Tensor, run: object | None) -> "_Programs | None":
        """The programs, if this call and the model as it is now are for kernels.

        Within a run they are those of the pass before: nothing has changed since.
        """
        if not _are_ids(ids):
            return None
        if run is not None and (run, self._programs) == self._run:
            return self._programs
        self._run, module = None, self.module
        if (
            torch.is_grad_enabled()
            or module.training
            or is_transformed()
            or (programs := self._current_programs()) is None
        ):
            return None
        if programs.watch.is_observed() or any(map(module.config.extra.get, ASK_MORE)):
            return None
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if run is not None and all(map(is_ours, hooks)):  # others may do anything; ours change no model
            self._run = run, programs
        return programs

    def _paged_logits(self, ids: Tensor, context: Paged, keep: int | Tensor) -> Tensor | None:
        """The logits (1, B, V) of each row's last token in a paged cache, or None where the pass is not for kernels."""
        programs, buffers = self._programs_for(ids, context.run), context.pages.buffers
        if programs is None or keep is not context.last or ids.numel() > MOST_AT_ONCE:
            return None
        if (len(buffers), buffers[0][0].dtype, buffers[0][0].is_cpu) != (programs.layers, programs.dtype, True):
            return None
        self._paged = None if self._run is None else (*self._run, ref(context.pages))
        return self._read(programs, ids.flatten().tolist(), context).unsqueeze(0)

    def read_rows(self, token_ids: Sequence[int], context: Paged) -> Tensor | None:
        """The same (B, V) within a run, after its first pass: without tensors, a call of the module, and its hooks."""
        run, programs, pages = self._paged or (None, None, None)
        if programs is None or context.run is not run or self._programs is not programs:
            return None
        if pages is None or pages() is not context.pages or len(token_ids) > MOST_AT_ONCE:
            return None
        return self._read(programs, token_ids, context)

    def _read(self, programs: "_Programs", token_ids: Sequence[int], context: Paged) -> Tensor:
        check_ids([token_ids], self.module.config.vocab_size)
        with self._lock:
            return programs.read_paged(token_ids, context)

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: GrowingCache, keep: int | Tensor) -> Tensor | None:
        """The logits (B, kept, V) in fp32, or None where the pass is not one for kernels."""
        if cache.unrotated or not isinstance(keep, int) or not isinstance(mask, Tensor | None):
            return None
        config, programs = self.module.config, self._programs_for(ids, cache.run)
        if programs is None:
            return None
        count = min(keep or ids.shape[1], ids.shape[1])
        layout = BatchLayout.of_mask(mask, rows=len(ids), cached=cache.length, tokens=ids.shape[1])
        if layout is None:
            return None
        if not len(cache):
            heads = config.num_key_value_heads
            cache.begin(programs.layers, batch=ids.shape[0], heads=heads, width=config.head_dim, dtype=programs.dtype)
        if (programs.layers, ids.shape[0], config.num_key_value_heads, config.head_dim, programs.dtype) != _kind(cache):
            return None
        ids = ids if ids.dtype == torch.int64 else ids.long()
        check_ids(ids.tolist(), config.vocab_size)
        with self._lock:
            start = cache.length
            try:
                return programs.read(ids, cache, layout, count)
            except BaseException:  # Ctrl-C between two parts of a prompt
                cache.crop(start)
                raise


def _untraced(call: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """The call as it is, under `torch.compile` too, which would trace how programs are made and run."""
    return cast("Any", torch.compiler.disable(call, reason=TRACED)) if torch.compiler.is_compiling() else call


def _are_ids(ids: Tensor) -> bool:
    """Whether these are token ids (B, T) for an embedding on the CPU; torch reports what is wrong with others."""
    return ids.ndim == 2 and ids.numel() > 0 and ids.dtype in (torch.int64, torch.int32) and ids.is_cpu


def _kind(cache: GrowingCache) -> tuple[object, ...]:
    """Layers, rows, heads, width and dtype of a cache, all of whose layers are alike."""
    keys = cache.buffers[0][0]
    return len(cache), keys.shape[0], keys.shape[1], keys.shape[3], keys.dtype


class _Programs:
    """The programs for a model with its present modules and the present addresses of its weights."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._workspace = Workspace()
        self._passes: dict[tuple[int, int], Pass] = {}
        self.watch = Watch(model)
        self.dtype, self.layers = model.dtype, len(model.model.layers)
        self._parts = ModelParts.of(model)

    def read(self, ids: Tensor, cache: GrowingCache, layout: BatchLayout, count: int) -> Tensor:
        """The logits (B, count, V) of the last tokens of ids (B, T), in passes of at most `MOST_AT_ONCE` tokens."""
        rows, tokens = ids.shape
        size, start = max(1, MOST_AT_ONCE // rows), 0
        logits: list[Tensor] = []
        for part in (ids,) if tokens <= size else ids.split(size, dim=1):
            length = part.shape[1]
            wanted = max(0, start + length - max(start, tokens - count))
            cache.reserve(length)
            ends = range(length, rows * length + 1, length)
            last = [number for end in ends for number in range(end - max(1, wanted), end)]
            made = self._pass(rows * length).run(part, cache.buffers, [layout.later(start)], last)
            if wanted:
                logits.append(made.view(rows, wanted, -1))
            start += length
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)

    def read_paged(self, token_ids: Sequence[int], context: Paged) -> Tensor:
        """The logits (n, V) of the wanted rows of a paged cache."""
        layouts = context.layouts
        program = self._pass(len(token_ids), len(layouts))
        return program.run(token_ids, context.pages.buffers, layouts, context.last_tokens)

    def _pass(self, tokens: int, levels: int = 1) -> Pass:
        """The program for `tokens` tokens, of any rows; the `PROGRAMS` last used ones are stored."""
        key = (tokens, levels)
        made = self._passes.pop(key, None)
        if made is None:
            made = Pass(self._parts, self._workspace, tokens, dtype=self.dtype, levels=levels)
        self._passes[key] = made
        if len(self._passes) > PROGRAMS:
            del self._passes[next(iter(self._passes))]
        return made
