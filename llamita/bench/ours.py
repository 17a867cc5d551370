"""llamita's session: a model in any format, with the CPU kernels if they support it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from llamita.bench import models
from llamita.bench.formats import dtype_of
from llamita.bench.workload import LONGEST, Workload
from llamita.checkpoint.load import load_pretrained
from llamita.engine import garbage
from llamita.engine.engine import Engine
from llamita.engine.handle import RequestHandle
from llamita.engine.limits import EngineLimits
from llamita.generation.text_options import TextModel
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse, unsupported_reason


class TorchSession:
    """A session of our model, or of transformers', which has the same methods."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def prefill(self, prompt: list[int]) -> None:
        """Compute the logits of the next token after a prompt, from an empty cache."""
        with torch.inference_mode():
            self._model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    def decode_seconds(self, prompt: list[int], tokens: int) -> float:
        """Process a prompt and generate one token, then time the next `tokens` tokens: seconds."""
        first = self._greedy(torch.tensor([prompt]), 1)
        start = perf_counter()
        out = self._greedy(first.sequences, tokens, past_key_values=first.past_key_values)
        seconds = perf_counter() - start
        assert out.sequences.shape[1] == len(prompt) + 1 + tokens
        return seconds

    def _greedy(self, ids: Tensor, tokens: int, **more: Any) -> Any:
        """Continue token ids (1, T) by this number of tokens: a record of the text and its cache."""
        options = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, **more}
        return self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options)

    def all_logits(self, document: list[int]) -> Tensor:
        """Compute the logits (T, V) after every token."""
        with torch.inference_mode():
            return self._model(torch.tensor([document]), use_cache=True).logits[0]


class OwnSession(TorchSession):
    """A session of our model, with an engine where requests run at once."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(model)
        self._engines: dict[int, Engine] = {}

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload with an empty cache: seconds."""
        if work.at_once not in self._engines:
            self._engines[work.at_once] = engine_of(self._model, work.at_once)
        return serve(self._engines[work.at_once], work)[1]


def engine_of(model: LlamaForCausalLM, at_once: int, *, longest: int = LONGEST) -> Engine:
    """An engine of a model without a tokenizer; the embedded model's stands for it, and no token ends a text."""
    tokenizer = load_pretrained().tokenizer
    tokenizer.eos_token_ids.clear()
    texts = TextModel(model, tokenizer)
    return Engine(texts, EngineLimits(max_num_seqs=at_once, max_model_len=longest))


def serve(engine: Engine, work: Workload) -> tuple[list[RequestHandle], float]:
    """Let an engine write a workload with an empty cache, greedy, `at_once` requests together; its handles, seconds.

    What there is before is left out of garbage collections, as `llamita serve` does: a full one takes 0.1 s.
    """
    engine.call(engine.forget).result()

    def write(prompt: list[int], answer: int) -> RequestHandle:
        handle = engine.submit(prompt, max_tokens=answer, temperature=0.0)
        assert len(handle.result().token_ids) == answer, "it has stopped before an answer was as long as asked for"
        return handle

    with garbage.frozen():
        start = perf_counter()
        with ThreadPoolExecutor(work.at_once) as clients:  # each has one request after the other
            handles = list(clients.map(write, work.prompts, work.answers))
        return handles, perf_counter() - start


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> OwnSession:
    """Open the checkpoint at `path`, or make random weights if there is none."""
    return OwnSession(fused(models.build(shape_name, format) if path is None else _loaded(path, format)))


def fused(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Apply the CPU plan if it supports the model."""
    return model if unsupported_reason(model) else fuse(model)


def save_folder(shape_name: str, format: str, path: Path) -> None:
    """Write the model as a checkpoint folder."""
    models.build(shape_name, format).save_pretrained(path, max_shard_size="100GB")


def save_blocks(shape_name: str, format: str, path: Path) -> None:
    """Write the model as a GGUF file without a tokenizer, quantized weights as they are."""
    from llamita.checkpoint.gguf_save import save_gguf

    save_gguf(models.build(shape_name, format), None, path)


def _loaded(path: Path, format: str) -> LlamaForCausalLM:
    if path.suffix == ".gguf":
        # Imported late: it imports the tokenizers, some MiB that no other session should be charged with.
        from llamita.checkpoint.gguf import load_gguf

        return load_gguf(path)[0].eval()
    return LlamaForCausalLM.from_pretrained(path, dtype=dtype_of(format), device="cpu")
