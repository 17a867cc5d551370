"""transformers' model with our weights."""

from pathlib import Path
from time import perf_counter
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from llamita.bench import models
from llamita.bench.formats import dtype_of
from llamita.bench.ours import TorchSession
from llamita.bench.workload import LONGEST, Workload
from llamita.bridge import transformers as bridge
from llamita.errors import LlamitaError

PAGE = 32  # tokens
MOST_IN_BATCH = 512  # tokens, as many as the longest text


class PeerSession(TorchSession):
    """A session of transformers' model, with its continuous batching where requests run at once."""

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload; its cache and its thread are there before the clock starts: seconds."""
        manager = self._model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0), _sizes(work)
        )
        manager.start()
        try:
            manager.add_request(work.prompts[0][:1], max_new_tokens=2)
            self._wait(manager, 1)
            start = perf_counter()
            for prompt, answer in zip(work.prompts, work.answers, strict=True):
                manager.add_request(prompt, max_new_tokens=answer)
            written = self._wait(manager, len(work.prompts))
            seconds = perf_counter() - start
        finally:
            manager.stop(hard_stop=True)
        if written != work.written:
            raise LlamitaError(f"transformers wrote {written} of {work.written} tokens")
        return seconds

    def _wait(self, manager: Any, count: int) -> int:
        """Wait for this number of answers; returns their tokens."""
        written = 0
        while count:
            if (done := manager.get_result(timeout=1.0)) is not None:
                written, count = written + len(done.generated_tokens), count - 1
            elif not manager.is_running():
                raise LlamitaError("transformers' continuous batching has stopped: see what it said before")
        return written


def _sizes(work: Workload) -> ContinuousBatchingConfig:
    """A cache as the workload needs it: by itself it takes most of the memory, and its masks are as large."""
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=-(-LONGEST // PAGE) * work.at_once,
        max_batch_tokens=MOST_IN_BATCH,
        max_requests_per_batch=work.at_once,
    )


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> TorchSession:
    """Open the checkpoint folder at `path`, or make random weights if there is none."""
    bridge.library().logging.disable_progress_bar()
    if path is None:
        return PeerSession(bridge.twin(models.build(shape_name, format)))
    return PeerSession(bridge.load(path, dtype=dtype_of(format), attn_implementation="sdpa"))
