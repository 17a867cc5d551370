"""transformers' model with our weights."""

from pathlib import Path
from time import perf_counter

from transformers import GenerationConfig

from llamita.bench import models
from llamita.bench.formats import dtype_of
from llamita.bench.ours import TorchSession
from llamita.bench.workload import Workload
from llamita.bridge import transformers as bridge
from llamita.errors import LlamitaError


class PeerSession(TorchSession):
    """A session of transformers' model, with its continuous batching where requests run at once."""

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload, each of the mean length, as its batches have one: seconds."""
        config = GenerationConfig(
            max_new_tokens=round(work.written / len(work.answers)), do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        start = perf_counter()
        done = self._model.generate_batch(inputs=work.prompts, generation_config=config, progress_bar=False)
        seconds = perf_counter() - start
        if len(done) != len(work.prompts):
            raise LlamitaError(f"transformers wrote {len(done)} of {len(work.prompts)} answers")
        return seconds


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> TorchSession:
    """Open the checkpoint folder at `path`, or make random weights if there is none."""
    bridge.library().logging.disable_progress_bar()
    if path is None:
        return PeerSession(bridge.twin(models.build(shape_name, format)))
    return PeerSession(bridge.load(path, dtype=dtype_of(format), attn_implementation="sdpa"))
