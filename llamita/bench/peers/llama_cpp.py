"""llama.cpp through llama-cpp-python, by its plain C calls: no Python but one call a token."""

from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.bench.shapes import shape
from llamita.errors import LlamitaError, UnsupportedError

llama_cpp: Any = import_module("llama_cpp")  # has no types, and stands in another environment perhaps
MOST_TOKENS = 4096  # of a context, as far as the model reads


class LlamaCppSession:
    """A GGUF file read by llama.cpp."""

    def __init__(self, path: Path, *, capacity: int, threads: int) -> None:
        llama_cpp.llama_log_set(_quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise UnsupportedError(f"llama.cpp cannot read {path}: it may be too old, or out of memory")
        settings: Any = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = capacity
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def read(self, prompt: list[int]) -> None:
        """Compute the logits of what follows a prompt, from an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self.go_on(prompt)

    def write(self, prompt: list[int], tokens: int) -> float:
        """Read a prompt and write the first token, then so many more: the seconds of these."""
        self.read(prompt)
        token = self.likeliest()
        start = perf_counter()
        for _ in range(tokens):
            self.go_on([token])
            token = self.likeliest()
        return perf_counter() - start

    def all_logits(self, document: list[int]) -> Tensor:
        """The logits (T, V) behind every token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        count = len(document)
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for index, token in enumerate(document):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        self._decode(batch, count)
        llama_cpp.llama_batch_free(batch)
        words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (count, words))
        return torch.from_numpy(logits.copy())  # the memory is llama.cpp's

    def go_on(self, tokens: list[int]) -> None:
        """Read more tokens, behind what is in the cache."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        self._decode(llama_cpp.llama_batch_get_one(ids, len(tokens)), len(tokens))
        llama_cpp.llama_synchronize(self._context)

    def _decode(self, batch: Any, count: int) -> None:
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise LlamitaError(f"llama.cpp stopped with code {code} at {count} tokens: is its context full?")

    def likeliest(self) -> int:
        """The token that the last pass finds likeliest."""
        return llama_cpp.llama_sampler_sample(self._sampler, self._context, -1)


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Say nothing."""


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> LlamaCppSession:
    """A session of the GGUF file at `path`."""
    assert path is not None
    capacity = min(shape(shape_name).max_position_embeddings, MOST_TOKENS)
    return LlamaCppSession(path, capacity=capacity, threads=threads)
