"""OpenVINO on the CPU: a stateful graph with our weights, compressed as OpenVINO's users compress it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llamita.bench import models
from llamita.bench.peers.greedy import GreedySession
from llamita.bench.peers.openvino_graph import build, openvino
from llamita.bench.shapes import EMBEDDED, shape
from llamita.bench.workload import Workload

WIDE = "bf16"  # dtype of products of quantized weights, unless OpenVINO chooses a smaller one


class OpenVinoSession(GreedySession):
    """A session of OpenVINO: a compiled graph and its state, and GenAI's pipelines where requests run at once.

    vocabulary: its size.
    """

    def __init__(self, path: Path, *, threads: int, precision: str, vocabulary: int) -> None:
        self._path, self._vocabulary, self._length = path, vocabulary, 0
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
        }
        self._pipelines: dict[int, Any] = {}

    @cached_property
    def _request(self) -> Any:
        """The graph for one text, compiled when it is first used."""
        settings = {**self._settings, "PERFORMANCE_HINT": "LATENCY"}
        return openvino.Core().compile_model(str(self._path), "CPU", settings).create_infer_request()

    def clear(self) -> None:
        """Empty the cache."""
        self._request.reset_state()
        self._length = 0

    def serve_seconds(self, work: Workload) -> float:
        """Write the answers of a workload, `at_once` together: seconds."""
        from llamita.bench.peers.openvino_genai import Batching  # another package, which no other test needs

        if work.at_once not in self._pipelines:
            self._pipelines[work.at_once] = Batching(self._path, self._settings, work.at_once, self._vocabulary)
        return self._pipelines[work.at_once].seconds(work)

    def append(self, tokens: list[int]) -> None:
        """Process more tokens after those in the cache."""
        positions = np.arange(self._length, self._length + len(tokens))
        self._length += len(tokens)
        inputs = {"input_ids": np.array([tokens]), "position_ids": positions[None], "beam_idx": np.zeros(1, np.int32)}
        self._request.infer(inputs)

    def greedy_token(self) -> int:
        """The token with the largest logit of the last pass."""
        return int(self.logits().argmax())

    def logits(self) -> np.ndarray:
        """The logits (V,) of the last token."""
        return self._request.get_output_tensor(0).data.reshape(-1)


def save(shape_name: str, format: str, path: Path) -> None:
    """Write the graph to an .xml file and its weights to a .bin file in the same folder."""
    source = models.build(shape_name, "fp32" if format == "fp32" else "bf16")
    weights = {
        name: weight if shape_name == EMBEDDED else _shifted(name, weight)
        for name, weight in source.state_dict().items()
    }
    weights["lm_head.weight"] = source.lm_head.weight.detach()
    openvino.save_model(build(shape(shape_name), weights, format), str(path), compress_to_fp16=False)


def _shifted(name: str, weight: Tensor) -> Tensor:
    """Shift the rows of a layer's weight by the layer's number: OpenVINO stores equal constants once."""
    return weight.roll(int(name.split(".")[2]), 0) if ".layers." in name and weight.ndim == 2 else weight


def open_session(shape_name: str, format: str, path: Path | None, threads: int) -> OpenVinoSession:
    """Open the graph at `path`."""
    assert path is not None
    precision, vocabulary = format if format in ("fp32", "bf16") else WIDE, shape(shape_name).vocab_size
    return OpenVinoSession(path, threads=threads, precision=precision, vocabulary=vocabulary)
