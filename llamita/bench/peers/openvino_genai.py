"""OpenVINO GenAI's continuous batching on the graph that the session of one text runs."""

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from llamita.bench.peers.openvino_graph import op, openvino
from llamita.bench.workload import LONGEST, Workload

genai: Any = import_module("openvino_genai")  # untyped, and perhaps installed in another environment only
BLOCK = 32  # tokens of a block of its cache on a CPU
NO_TOKENIZER = '{"model_type": "llama", "eos_token_id": 0}'  # as config.json and generation_config.json


class Batching:
    """A pipeline that writes `at_once` texts together."""

    def __init__(self, path: Path, settings: dict[str, Any], at_once: int, vocabulary: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.num_kv_blocks = at_once, -(-LONGEST // BLOCK) * at_once
        scheduler.enable_prefix_caching = True
        with TemporaryDirectory(prefix="llamita-bench-") as folder:
            save_masked(path, Path(folder))
            self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", settings)
        self._vocabulary, self._turn = vocabulary, 0

    def seconds(self, work: Workload) -> float:
        """Write the answers of a workload: seconds. Each turn has other tokens, so that none of its texts is cached."""
        self._turn += 1
        prompts = [[(token + self._turn) % self._vocabulary for token in prompt] for prompt in work.prompts]
        tensors = [openvino.Tensor(np.array([prompt])) for prompt in prompts]
        configs = [greedy(answer) for answer in work.answers]
        start = perf_counter()
        handles = [self._pipeline.add_request(n, *one) for n, one in enumerate(zip(tensors, configs, strict=True))]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        seconds = perf_counter() - start
        written = [len(handle.read_all()[0].generated_ids) for handle in handles]
        assert written == work.answers, "it has stopped before an answer was as long as asked for"
        return seconds


def greedy(tokens: int) -> Any:
    """The settings of an answer of this number of tokens."""
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    return config


def save_masked(path: Path, folder: Path) -> None:
    """Write a graph as GenAI reads it: with an attention_mask, by which it finds the attention that it replaces."""
    model = openvino.Core().read_model(str(path))
    mask = op.parameter([1, -1], np.int64, name="attention_mask")
    mask.output(0).get_tensor().set_names({"attention_mask"})
    seen = op.unsqueeze(op.convert(mask, "f32"), op.constant(np.array([1, 2])))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            node.set_arguments([*node.input_values(), seen.output(0)])
    model.add_parameters([mask])
    openvino.save_model(model, str(folder / "openvino_model.xml"), compress_to_fp16=False)
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(NO_TOKENIZER)
