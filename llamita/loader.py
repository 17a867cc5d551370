"""`llamita.load`: a checkpoint, its tokenizer and the plans that make it fast, ready to write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, cast

import torch
from torch import Tensor

from llamita.checkpoint.load import Loaded, load_pretrained
from llamita.checks import remedy
from llamita.errors import UnsupportedError, UsageError
from llamita.habits import LOADING
from llamita.llm import LLM
from llamita.model.llama import LlamaForCausalLM

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from llamita.quant.matrix import QuantizedMatrix
    from llamita.quant.surgery import QuantizationChoice


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    draft: str | Path | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    quantize: str | Mapping[str, str] | None = None,
    kernels: str = "auto",
    compile: str = "off",
    deterministic: bool = False,
    device_mesh: "DeviceMesh | None" = None,
    **others: Never,
) -> LLM:
    """A model ready to write: "cria" or None for the embedded one, a folder, a .gguf file, or a name on the hub.

    That is a repository's id, or one of its GGUF files by quantization or name: org/name:Q4_K_M, org/name:file.gguf.
    draft: a smaller model of the same tokens, named in the same way, which drafts ahead and changes no answer.
    adapter: the folder of a LoRA adapter, ours or peft's, which is merged into the weights before anything else; layers
    that a GGUF file has in blocks are taken out of them for it (`quantize` puts them back).
    adapters: folders of others by name, for the requests of an engine: `llm.engine().submit(..., adapter=name)`. Each
    is merged into a copy that shares all weights but the adapted ones, so it writes as the model loaded with it.
    quantize: "q8_0", "q4_k" or another recipe of `llamita.quant.recipes`, or one's own mapping of globs to formats.
    kernels: "auto" lets the device's kernels write wherever they know the model (`llamita.plans.cpu`, and on CUDA
    `llamita.plans.cuda.layers`, whose model cannot be saved or trained), to the rounding of the last bits as the plain
    model would; "off" writes with the plain model.
    compile: "regional" or "full" lets torch compile the model, in place of our kernels (`llamita.plans.compile`).
    deterministic: a text never depends on what else is in the batch, to the last bit. The CPU's kernels keep that
    anyway; any other model gets torch's batch-invariant mode, which is slower.
    device_mesh: processes over whose `tp` dim the model is sharded; each loads its own part, calls the LLM in the same
    way and gets the same text, that of one process (`llamita.parallel.tensor`).
    See `llamita.checkpoint.load.load_pretrained` for the options and errors, and `llamita.load_adapter` for those of
    adapters. Raises UsageError for other options, which says what is written instead of those of other libraries.
    """
    for other in others:
        known = [option for option in load.__annotations__ if option not in ("others", "return")]
        raise UsageError(f"load has no option {other!r}{remedy(other, LOADING, known)}")
    options: dict[str, Any] = {"dtype": dtype, "device": device, "offline": offline}
    options["attn_implementation"] = attn_implementation
    if kernels not in ("auto", "off"):
        raise UsageError(f"kernels is {kernels!r}: say auto or off")
    if device_mesh is not None:
        rest = {"draft": draft, "adapter": adapter, "adapters": adapters, "quantize": quantize}
        _check_plain({**rest, "compile": compile != "off", "deterministic": deterministic})
        kernels = "off"
        loaded = _shared(name, device_mesh, revision=revision, **options)
    else:
        loaded = load_pretrained(name, revision=revision, **options)
    if adapter is not None:
        loaded = _merged(loaded, adapter)
    variants = {name: _merged(loaded, folder, is_copy=True) for name, folder in (adapters or {}).items()}
    if quantize is not None:
        _quantize(loaded.model, quantize, [one.model for one in variants.values()])
    drafter = None if draft is None else load_pretrained(draft, **options).model
    for model in (loaded.model, *(one.model for one in variants.values()), drafter):
        if model is not None:
            _prepare(model, kernels=kernels, compile=compile, deterministic=deterministic)
    return LLM(loaded, drafter, variants)


def _shared(name: str | Path | None, device_mesh: "DeviceMesh", **options: Any) -> Loaded:
    """The part of a model that this process has; what is wrong in one of them is raised in all."""
    from llamita.parallel.mesh import together

    return together(lambda: load_pretrained(name, device_mesh=device_mesh, **options))


def _check_plain(asked: Mapping[str, object]) -> None:
    """Raise UnsupportedError for what a sharded model does not have."""
    if name := next((name for name, value in asked.items() if value), None):
        raise UnsupportedError(f"{name} is for a model in one process, and tensor parallelism shards it: leave one out")


def _merged(loaded: Loaded, adapter: str | Path, *, is_copy: bool = False) -> Loaded:
    """The model, or a copy, with an adapter in its weights; the layers are plain again, so the kernels know them."""
    from llamita.adapters.copies import shared_copy
    from llamita.adapters.files import adapter_digest, load_adapter
    from llamita.adapters.lora import dequantize_adapted, merge_and_unload

    model = shared_copy(loaded.model) if is_copy else loaded.model
    dtype = model.dtype
    load_adapter(model, adapter)
    dequantize_adapted(model, dtype)
    merge_and_unload(model)
    return replace(loaded, model=model, adapter=adapter_digest(adapter))


def _quantize(model: LlamaForCausalLM, recipe: str | Mapping[str, str], copies: Sequence[LlamaForCausalLM]) -> None:
    """Quantize a model, and copies of it alike; weights that are the same memory stay so."""
    from llamita.quant import surgery

    def put_in_copies(choice: "QuantizationChoice", weight: Tensor, matrix: "QuantizedMatrix") -> None:
        assert choice.format_name is not None
        for copy in copies:
            own = cast("Tensor", copy.get_submodule(choice.names[0]).weight).detach()
            is_shared = own.data_ptr() == weight.data_ptr()
            surgery.put(
                copy, choice.names, matrix if is_shared else surgery.quantized(choice.names[0], own, choice.format_name)
            )

    surgery.quantize(model, recipe, observer=put_in_copies)
    for copy in copies:
        surgery.freeze(copy)


def _prepare(model: LlamaForCausalLM, *, kernels: str, compile: str, deterministic: bool) -> None:
    """Apply the plans asked for. Each is loaded only here: compilers take a while, and a plain model needs none."""
    if deterministic and not _keeps_the_promise(model, kernels=kernels, compile=compile):
        from llamita.plans.invariant import invariant

        invariant(model)
    if compile != "off":
        from llamita.plans.compile import compile_model

        compile_model(model, compile)
    elif kernels == "auto" and model.device.type in KERNELS:
        KERNELS[model.device.type](model)


def _keeps_the_promise(model: LlamaForCausalLM, *, kernels: str, compile: str) -> bool:
    """Whether the CPU's kernels will write, whose answers depend on nothing else in any case."""
    if model.device.type != "cpu" or kernels == "off" or compile != "off":
        return False
    from llamita.plans.cpu import unsupported_reason

    return unsupported_reason(model) is None


def _on_cpu(model: LlamaForCausalLM) -> None:
    from llamita.plans.cpu import fuse, unsupported_reason

    if unsupported_reason(model) is None:
        fuse(model)


def _on_cuda(model: LlamaForCausalLM) -> None:
    from llamita.plans.cuda.layers import accelerate, unsupported_reason

    if unsupported_reason(model) is None:
        accelerate(model)


# What lets a device's own kernels write, wherever they know the model.
KERNELS: Mapping[str, Callable[[LlamaForCausalLM], None]] = {"cpu": _on_cpu, "cuda": _on_cuda}
