"""llama.cpp through the C functions of llama-cpp-python: one call from Python per token."""

from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamita.bench.peers.greedy import GreedySession
from llamita.bench.shapes import shape
from llamita.bench.workload import LONGEST, Workload
from llamita.errors import LlamitaError, UnsupportedError

llama_cpp: Any = import_module("llama_cpp")  # untyped, and perhaps installed in another environment only
MAX_CONTEXT = 4096  # tokens
MOST_IN_BATCH = 2048  # tokens, llama.cpp's default


class LlamaCppSession(GreedySession):
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
        self._threads = threads
        self._sampler = llama_cpp.llama_sampler_init_greedy()

    def clear(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def all_logits(self, document: list[int]) -> Tensor:
        """Compute the logits (T, V) after every token."""
        self.clear()
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

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload as llama.cpp's server does, a sequence for each slot: seconds."""
        slots, start = SequenceSlots(self._model, work, self._threads), perf_counter()
        while slots.has_work:
            slots.step(self._sampler)
        seconds = perf_counter() - start
        slots.close()
        return seconds


class SequenceSlots:
    """Continuous batching by llama.cpp's sequences: each step has one token of each that writes, and whole prompts."""

    def __init__(self, model: Any, work: Workload, threads: int) -> None:
        settings: Any = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = work.at_once * LONGEST, work.at_once, MOST_IN_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._batch = llama_cpp.llama_batch_init(MOST_IN_BATCH, 0, 1)
        self._left = list(zip(work.prompts, work.answers, strict=True))[::-1]
        self._slots: list[list[Any] | None] = [None] * work.at_once  # unread tokens, position, tokens left to write

    @property
    def has_work(self) -> bool:
        """Whether an answer is missing."""
        return bool(self._left) or any(self._slots)

    def step(self, sampler: Any) -> None:
        """Fill free slots, compute a batch, and take the next token of each slot that has no unread ones."""
        self._batch.n_tokens, ends = 0, {}
        for number, slot in enumerate(self._slots):
            if slot is None and self._left:
                prompt, answer = self._left.pop()
                slot = self._slots[number] = [list(prompt), 0, answer]
            if slot is not None and (taken := min(len(slot[0]), MOST_IN_BATCH - self._batch.n_tokens)):
                self._put(number, slot, taken)
                if not slot[0]:
                    ends[number] = self._batch.n_tokens - 1
        if code := llama_cpp.llama_decode(self._context, self._batch):
            raise LlamitaError(f"llama.cpp stopped with code {code} while serving: its context may be full")
        for number, index in ends.items():
            slot = self._slots[number]
            assert slot is not None
            slot[0].append(llama_cpp.llama_sampler_sample(sampler, self._context, index))
            slot[2] -= 1
            if not slot[2]:
                llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), number, -1, -1)
                self._slots[number] = None

    def _put(self, number: int, slot: list[Any], count: int) -> None:
        """Put the next unread tokens of a slot into the batch."""
        for offset, token in enumerate(slot[0][:count]):
            at = self._batch.n_tokens
            self._batch.token[at], self._batch.pos[at] = token, slot[1] + offset
            self._batch.n_seq_id[at], self._batch.seq_id[at][0] = 1, number
            self._batch.logits[at] = offset == len(slot[0]) - 1
            self._batch.n_tokens += 1
        slot[0], slot[1] = slot[0][count:], slot[1] + count

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: Any) -> None:
    """Drop log lines."""


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> LlamaCppSession:
    """Open the GGUF file at `path`."""
    assert path is not None
    context_length = min(shape(shape_name).max_position_embeddings, MAX_CONTEXT)
    return LlamaCppSession(path, context_length=context_length, threads=threads)
