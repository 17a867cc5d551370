"""llama.cpp through the C functions of llama-cpp-python: one call from Python per token."""

from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.bench.shapes import shape
from llamita.errors import LlamitaError, UnsupportedError

llama_cpp: Any = import_module("llama_cpp")  # untyped, and perhaps installed in another environment only
MAX_CONTEXT = 4096  # tokens


class LlamaCppSession:
    """A session of llama.cpp on a GGUF file."""

    def __init__(self, path: Path, *, context_length: int, threads: int) -> None:
        llama_cpp.llama_log_set(_quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise UnsupportedError(f"llama.cpp cannot read {path}: install a newer llama-cpp-python, or free memory")
        settings: Any = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = context_length
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def prefill(self, prompt: list[int]) -> None:
        """Compute the logits of the next token after a prompt, from an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self.append(prompt)

    def decode_seconds(self, prompt: list[int], tokens: int) -> float:
        """Process a prompt and generate one token, then time the next `tokens` tokens: seconds."""
        self.prefill(prompt)
        token = self.greedy_token()
        start = perf_counter()
        for _ in range(tokens):
            self.append([token])
            token = self.greedy_token()
        return perf_counter() - start

    def all_logits(self, document: list[int]) -> Tensor:
        """Compute the logits (T, V) after every token."""
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
        return torch.from_numpy(logits.copy())  # llama.cpp owns the memory

    def append(self, tokens: list[int]) -> None:
        """Process more tokens after those in the cache."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        self._decode(llama_cpp.llama_batch_get_one(ids, len(tokens)), len(tokens))
        llama_cpp.llama_synchronize(self._context)

    def _decode(self, batch: Any, count: int) -> None:
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise LlamitaError(
                f"llama.cpp stopped with code {code} at {count} tokens: its context may be full, give fewer tokens"
            )

    def greedy_token(self) -> int:
        """The token with the largest logit of the last pass."""
        return llama_cpp.llama_sampler_sample(self._sampler, self._context, -1)


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Drop log lines."""


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> LlamaCppSession:
    """Open the GGUF file at `path`."""
    assert path is not None
    context_length = min(shape(shape_name).max_position_embeddings, MAX_CONTEXT)
    return LlamaCppSession(path, context_length=context_length, threads=threads)
