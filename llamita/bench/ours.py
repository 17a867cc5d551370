"""Our side: a model in any format, its decode step fused where the kernels know it."""

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llamita.bench import models
from llamita.bench.formats import dtype_of
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse, why_not


class TorchSession:
    """A model of ours, or of transformers, which is called alike."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def read(self, prompt: list[int]) -> None:
        """Compute the logits of what follows a prompt, from an empty cache."""
        with torch.inference_mode():
            self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    def write(self, prompt: list[int], tokens: int) -> float:
        """Read a prompt and write the first token, then so many more: the seconds of these."""
        watch = Watch()
        ids = torch.tensor([prompt])
        out = self._model.generate(ids, max_new_tokens=tokens + 1, do_sample=False, pad_token_id=0, streamer=watch)
        assert out.shape[1] == len(prompt) + tokens + 1 and len(watch.times) == tokens + 2
        return watch.times[-1] - watch.times[1]

    def all_logits(self, document: list[int]) -> Tensor:
        """The logits (T, V) behind every token."""
        with torch.inference_mode():
            return self._model(torch.tensor([document]), use_cache=True).logits[0]


class Watch:
    """A streamer that notes when it is given the prompt, and when every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note the time."""
        self.times.append(perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> TorchSession:
    """A session of the checkpoint at `path`, or without one of weights made here."""
    return TorchSession(fused(models.build(shape_name, format) if path is None else _loaded(path, format)))


def fused(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with its short passes as one program, where the kernels know all its parts."""
    return model if why_not(model) else fuse(model)


def save_folder(shape_name: str, format: str, path: Path) -> None:
    """Write the model as a checkpoint folder."""
    models.build(shape_name, format).save_pretrained(path, max_shard_size="100GB")


def save_blocks(shape_name: str, format: str, path: Path) -> None:
    """Write the model as a GGUF file without a tokenizer, quantized weights block for block."""
    from llamita.checkpoint.gguf_save import save_gguf

    save_gguf(models.build(shape_name, format), None, path)


def _loaded(path: Path, format: str) -> LlamaForCausalLM:
    if path.suffix == ".gguf":
        # It brings the tokenizers along, some MiB that no other session is to be measured with.
        from llamita.checkpoint.gguf import load_gguf

        return load_gguf(path)[0].eval()
    return LlamaForCausalLM.from_pretrained(path, dtype=dtype_of(format), device="cpu")
