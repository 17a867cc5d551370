"""The bench counts right, says what it measured, and fails in one sentence."""

import json

import pytest
import torch

from llamita.bench import decode, report, speculate, train
from llamita.bench.peers import named
from llamita.bench.shapes import SHAPES, shape
from llamita.bench.workers import Job, peak_bytes, workers
from llamita.cli.main import main
from llamita.errors import LlamitaError, UsageError

VALUES = {"llamita": [1.0, 2.0, 3.0], "peer": [2.0, 2.0, 12.0]}


def test_rows_carry_medians_and_the_median_of_turn_by_turn_ratios() -> None:
    ours, theirs = report.rows_of(VALUES, test="t", shape="s", format="f", unit="s")
    assert (ours.median, ours.min, ours.max, ours.ratio) == (2.0, 1.0, 3.0, None)
    assert theirs.ratio == 0.5


def test_formats() -> None:
    rows = report.rows_of(VALUES, test="t", shape="s", format="f", unit="s")
    facts = report.machine(threads=3)
    read = json.loads(report.as_json(rows, facts))
    assert read["machine"]["threads"] == 3
    fields = ["test", "shape", "format", "system", "median", "min", "max", "unit", "ratio", "of_limit"]
    assert list(read["rows"][0]) == fields
    assert report.as_csv(rows, facts).splitlines()[0] == ",".join(fields)
    assert "| t | s | f | peer | 2.000 | 2.000 | 12.000 | s | 0.500 |" in report.as_markdown(rows, facts)


def test_peak_counts_tensors_held_at_once() -> None:
    def job() -> float:
        first = torch.ones(1000)  # 4000 bytes
        second = first + 1  # 8000 held
        del first
        third = second * 2  # 8000 held again
        return float(third[0])

    assert 8000 <= peak_bytes(job) < 8200


def test_a_step_of_each_system_in_its_own_process() -> None:
    rows = train.measure(["llamita"], shape_name="tiny", dtype="float32", batch=2, length=8, repeats=2, threads=1)
    seconds, memory = rows
    assert seconds.unit == "s" and 0 < seconds.min <= seconds.median <= seconds.max
    logits = 2 * 8 * SHAPES["tiny"].vocab_size * 4
    assert memory.unit == "MiB" and memory.median > logits / 2**20


def test_ours_and_transformers_take_the_same_step() -> None:
    jobs = [train.prepare(system, "tiny", "float32", 2, 8) for system in ("llamita", "transformers")]
    peaks = []
    for job in jobs:
        job()
        peaks.append(peak_bytes(job))
    assert peaks[0] <= peaks[1]


def failing(message: str) -> Job:
    raise ValueError(message)


def test_a_worker_that_fails_says_why() -> None:
    started = workers(failing, {"llamita": ("no such luck",)}, threads=1)
    with started as systems, pytest.raises(LlamitaError, match="ValueError: no such luck"):
        systems["llamita"].ask("run")


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="'9t' is unknown"):
        shape("9t")
    with pytest.raises(UsageError, match="'vllm' is no system"):
        named("vllm")
    assert named("") == ["llamita"]
    assert named("transformers, llamita") == ["llamita", "transformers"]


@pytest.mark.parametrize("flags", [["--shape", "9t"], ["--repeats", "0"], ["--against", "vllm"]])
def test_the_command_refuses_in_a_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_decoding_rows() -> None:
    rows = decode.measure(["llamita"], shape_name="tiny", dtype="float32", batch=2, tokens=4, repeats=2, threads=1)
    speed, greedy, sampled = rows
    assert speed.unit == "tok/s" and speed.median > 0
    assert 0 < greedy.median < 100 and 0 < sampled.median < 100


def test_guessing_rows_tell_what_was_accepted() -> None:
    rows = speculate.measure(shape_name="tiny", dtype="float32", batches=(2,), tokens=12, repeats=1)
    plain, lookup, draft = rows
    assert plain.system == "plain" and plain.ratio is None
    assert lookup.system.startswith("prompt lookup, ") and draft.system.startswith("draft model, ")
    assert draft.ratio == pytest.approx(plain.median / draft.median)
