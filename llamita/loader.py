"""`llamita.load`: a checkpoint, its tokenizer and the plans that make it fast, ready to write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from llamita.checkpoint.load import load_pretrained
from llamita.errors import UsageError
from llamita.llm import LLM
from llamita.model.llama import LlamaForCausalLM


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
    quantize: str | Mapping[str, str] | None = None,
    kernels: str = "auto",
    compile: str = "off",
    deterministic: bool = False,
) -> LLM:
    """A model ready to write: "cria" or None for the embedded one, a folder, a .gguf file, or a name on the hub.

    That is a repository's id, or one of its GGUF files by quantization or name: org/name:Q4_K_M, org/name:file.gguf.
    draft: a smaller model of the same tokens, named in the same way, which guesses ahead and changes no answer.
    adapter: the folder of a LoRA adapter, ours or peft's, which is merged into the weights before anything else.
    quantize: "q8_0", "q4_k" or another recipe of `llamita.quant.recipes`, or one's own mapping of globs to formats.
    kernels: "auto" lets the device's kernels write wherever they know the model (`llamita.plans.cpu`, and on CUDA
    `llamita.plans.cuda.layers`, whose model cannot be saved or trained), to the rounding of the last bits as the plain
    model would; "off" writes with the plain model.
    compile: "regional" or "full" lets torch compile the model, in place of our kernels (`llamita.plans.compile`).
    deterministic: a text never depends on what else is in the batch, to the last bit. The CPU's kernels keep that
    anyway; any other model gets torch's batch-invariant mode, which is slower.
    See `llamita.checkpoint.load.load_pretrained` for the options and errors, and `llamita.load_adapter` for those of
    adapters.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "offline": offline}
    options["attn_implementation"] = attn_implementation
    if kernels not in ("auto", "off"):
        raise UsageError(f"kernels is {kernels!r}: say auto or off")
    loaded = load_pretrained(name, revision=revision, **options)
    if adapter is not None:
        _merge(loaded.model, adapter)
    if quantize is not None:
        from llamita.quant import surgery

        surgery.quantize(loaded.model, quantize)
    drafter = None if draft is None else load_pretrained(draft, **options).model
    for model in (loaded.model, drafter):
        if model is not None:
            _prepare(model, kernels=kernels, compile=compile, deterministic=deterministic)
    return LLM(loaded, drafter)


def _merge(model: LlamaForCausalLM, adapter: str | Path) -> None:
    """Merge an adapter into the weights. The layers are plain ones again, so the kernels know them."""
    from llamita.adapters.files import load_adapter
    from llamita.adapters.lora import merge_and_unload

    load_adapter(model, adapter)
    merge_and_unload(model)


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
