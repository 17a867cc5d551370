"""transformers' model with our weights."""

from pathlib import Path
from typing import Any

import torch

from llamita.bench import models
from llamita.bench.formats import dtype_of
from llamita.bench.ours import TorchSession
from llamita.bridge import transformers as bridge
from llamita.config import LlamaConfig


def twin(config: LlamaConfig, dtype: torch.dtype) -> Any:
    """transformers' model with our random weights."""
    return bridge.twin(models.random(config, dtype))


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> TorchSession:
    """Open the checkpoint folder at `path`, or make random weights if there is none."""
    bridge.library().logging.disable_progress_bar()
    if path is None:
        return TorchSession(bridge.twin(models.build(shape_name, format)))
    return TorchSession(bridge.load(path, dtype=dtype_of(format), attn_implementation="sdpa"))
