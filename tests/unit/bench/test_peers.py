"""Peers compute what ours computes, where their libraries are installed (`llamita[peers]`)."""

from pathlib import Path

import pytest
import torch

from llamita.bench import files, models
from llamita.bench.prompts import prompt
from llamita.bench.shapes import SHAPES, shape
from llamita.bench.systems import SYSTEMS, open_session
from llamita.bench.workload import Workload

IDS = prompt(SHAPES["tiny"].vocab_size, 9)


def logits_of_ours() -> torch.Tensor:
    with torch.no_grad():
        return models.build("tiny", "fp32")(torch.tensor([IDS]), logits_to_keep=1).logits[0, 0]


def test_openvino_computes_the_same_logits(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from llamita.bench.peers.openvino import OpenVinoSession
    from llamita.bench.peers.openvino_graph import build, openvino

    path = tmp_path / "graph.xml"
    weights = dict(models.build("tiny", "fp32").state_dict())
    openvino.save_model(build(shape("tiny"), weights, "fp32"), str(path), compress_to_fp16=False)
    session = OpenVinoSession(path, threads=1, precision="fp32", vocabulary=shape("tiny").vocab_size)
    session.prefill(IDS)
    whole = torch.tensor(session.logits())
    session.prefill(IDS[:4])
    session.append(IDS[4:8])
    session.append(IDS[8:])
    torch.testing.assert_close(whole, logits_of_ours(), atol=1e-5, rtol=0)
    # Its cache has 8 bits unless told otherwise.
    torch.testing.assert_close(torch.tensor(session.logits()), logits_of_ours(), atol=5e-3, rtol=0)


def test_llama_cpp_finds_the_same_token_likeliest(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = files.written_file(SYSTEMS["llama.cpp"], "tiny", "fp32", tmp_path, None)
    session = open_session("llama.cpp", "tiny", "fp32", path, 1)
    session.prefill(IDS)
    assert session.greedy_token() == logits_of_ours().argmax()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("system", "package"),
    [("openvino", "openvino_genai"), ("llama.cpp", "llama_cpp"), ("transformers", "transformers")],
)
def test_many_texts_at_once(system: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    described = SYSTEMS[system]
    path = files.written_file(described, "tiny", "fp32", tmp_path, None) if described.needs_file else None
    session = open_session(system, "tiny", "fp32", path, 1)
    work = Workload.of(2, "tiny", 0)
    assert session.serve_seconds(work.beginning()) > 0
    assert session.serve_seconds(work) > 0
