"""OpenVINO on the CPU: a stateful graph made of our weights, compressed as it is usually deployed."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from llamita.bench import models
from llamita.bench.peers.openvino_graph import build, openvino
from llamita.bench.shapes import EMBEDDED, shape

WIDE = "bf16"  # what products of quantized weights are computed in, as far as OpenVINO does not choose less


class OpenVinoSession:
    """A compiled graph and its state."""

    def __init__(self, path: Path, *, threads: int, precision: str) -> None:
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request: Any = core.compile_model(str(path), "CPU", settings).create_infer_request()
        self._length = 0

    def read(self, prompt: list[int]) -> None:
        """Compute the logits of what follows a prompt, from an empty cache."""
        self._request.reset_state()
        self._length = 0
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

    def go_on(self, tokens: list[int]) -> None:
        """Read more tokens, behind what is in the cache."""
        positions = np.arange(self._length, self._length + len(tokens))
        self._length += len(tokens)
        inputs = {"input_ids": np.array([tokens]), "position_ids": positions[None], "beam_idx": np.zeros(1, np.int32)}
        self._request.infer(inputs)

    def likeliest(self) -> int:
        """The token that the last pass finds likeliest."""
        return int(self.logits().argmax())

    def logits(self) -> np.ndarray:
        """The logits (V,) of the last token read."""
        return self._request.get_output_tensor(0).data.reshape(-1)


def save(shape_name: str, format: str, path: Path) -> None:
    """Write the graph and its weights: an .xml file and a .bin file beside it."""
    source = models.build(shape_name, "fp32" if format == "fp32" else "bf16")
    weights = {
        name: weight if shape_name == EMBEDDED else _apart(name, weight) for name, weight in source.state_dict().items()
    }
    weights["lm_head.weight"] = source.lm_head.weight.detach()
    openvino.save_model(build(shape(shape_name), weights, format), str(path), compress_to_fp16=False)


def _apart(name: str, weight: Tensor) -> Tensor:
    """A random layer's weight with its rows moved on by the layer's number: OpenVINO keeps equal constants once."""
    return weight.roll(int(name.split(".")[2]), 0) if ".layers." in name and weight.ndim == 2 else weight


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> OpenVinoSession:
    """A session of the graph at `path`."""
    assert path is not None
    return OpenVinoSession(path, threads=threads, precision=format if format in ("fp32", "bf16") else WIDE)
