"""Every test of the bench runs on a tiny shape, beside transformers where there is one, and fails in one sentence."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.bench import (
    bandwidth,
    decode,
    files,
    gemm,
    load,
    memory,
    models,
    ours,
    overhead,
    prefill,
    quality,
    roofline,
    rows,
    speculate,
    systems,
    train,
)
from llamita.bench.compare import Measurement, Results, Settings
from llamita.bench.shapes import SHAPES, shape
from llamita.bench.systems import SYSTEMS, named_systems
from llamita.bench.workers import ProcessPerTurn, Run, Worker
from llamita.cli.main import main
from llamita.errors import UnsupportedError, UsageError
from llamita.model.likelihood import nats, perplexity

BESIDE = Settings(shape="tiny", formats=["fp32"], systems=["llamita", "transformers"], repeats=1, threads=1)


@pytest.fixture(autouse=True)
def little_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits from 1 MiB, not from 1 GiB, and products of a moment."""
    monkeypatch.setattr(decode, "MEMORY", replace(decode.MEMORY, arguments=lambda _: (2**20,)))
    monkeypatch.setattr(gemm, "MIN_SECONDS", 0.001)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run here, with what is imported: test_workers runs processes, and test_the_command_... all of it."""

    def prepared(worker: Worker, prepare: Callable[..., Run], arguments: tuple[Any, ...], *_: int, **__: None) -> None:
        worker._job = prepare(*arguments)  # type: ignore[attr-defined]

    monkeypatch.setattr(Worker, "__init__", prepared)
    monkeypatch.setattr(Worker, "measure", lambda worker, order: worker._job())
    monkeypatch.setattr(Worker, "stop", lambda worker: None)
    monkeypatch.setattr(bandwidth, "KERNELS", {"torch.sum": bandwidth.KERNELS["torch.sum"]})  # Numba compiles for long


def test_decode(in_this_process: None) -> None:
    measured = decode.measure(BESIDE, tokens=4, depth=1)
    ours, theirs = measured.rows
    assert (ours.system, theirs.system) == ("llamita", "transformers")
    assert ours.test == "tg4" and ours.unit == "tok/s"
    assert theirs.ratio == pytest.approx(ours.median / theirs.median)
    assert all(row.of_limit and row.of_limit > 0 for row in measured.rows)
    assert measured.facts()["memory read"]["unit"] == "GB/s"
    assert measured.versions["transformers"]


def test_decode_behind_a_prompt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Measurement] = []
    monkeypatch.setattr(decode, "compare", lambda trial, settings: asked.append(trial))
    decode.measure(BESIDE, tokens=2, depth=5)
    (trial,) = asked
    assert trial.name == "tg2 @ d5" and trial.arguments == (2, 5)
    read = (512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)) * 4
    assert trial.share("fp32", 10.0, 20.0 * read) == pytest.approx(0.5)


def test_decode_beside_a_busy_process(in_this_process: None) -> None:
    measured = decode.measure_under_load(replace(BESIDE, threads=2), tokens=3, depth=1)
    assert {row.test for row in measured.rows} == {"tg3, busy neighbour"}
    assert [row.system for row in measured.rows] == ["llamita", "llamita, threads: 1", "transformers"]
    many, one, theirs = measured.rows
    assert many.ratio is None and one.ratio == pytest.approx(many.median / one.median) and theirs.ratio


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of ours, on which nothing takes time but the first token, which takes 4 s."""
    path = files.written_file(SYSTEMS["llamita"], "tiny", "q8_0", tmp_path, None)
    assert path.suffix == ".gguf"
    clock, stat, first_token = {"now": 3.0}, tmp_path / "stat", load._first_token

    def slow_first_token(*of: Any) -> None:
        first_token(*of)
        clock["now"] += 4.0

    monkeypatch.setattr(load, "_first_token", slow_first_token)
    monkeypatch.setattr(load, "perf_counter", lambda: clock["now"])
    assert load.prepare_call("llamita", "tiny", "q8_0", path, 1)() == 4.0
    stat.write_text(f"7 (a) b) S {' '.join('1' * 18)} {2 * os.sysconf('SC_CLK_TCK')} 5")  # started at 2 s
    monkeypatch.setattr(load, "Path", lambda _: stat)
    monkeypatch.setattr(load, "clock_gettime", lambda _: clock["now"])
    assert load.prepare_start("llamita", "tiny", "q8_0", path, 1)() == 3.0 + 4.0 + 4.0 - 2.0
    assert load.prepare_limit(path, 2)() == 0.0


@pytest.mark.parametrize("rates", [{"fp32": 7.0, "bf16": 2.0}, {"fp32": 2.0, "bf16": 7.0}], ids=str)
def test_the_limit_of_reading_is_the_faster_of_fp32_and_bf16(
    rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Measurement] = []
    monkeypatch.setattr(prefill, "compare", lambda trial, settings: asked.append(trial))
    monkeypatch.setattr(gemm, "PRODUCTS", {name: lambda _, rate=rate: rate for name, rate in rates.items()})
    monkeypatch.setattr(gemm, "_speed", lambda operations, rate: rate)
    prefill.measure(BESIDE, length=5)
    (limit,) = [trial.limit for trial in asked if trial.limit]
    assert limit.prepare(*limit.arguments(None))() == 7.0


def test_quality(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system's perplexity is that of the model's own losses, and of the limit ours in fp32."""
    whole = quality.held_out(64)
    monkeypatch.setattr(quality, "held_out", lambda length: whole[:3])
    settings = replace(BESIDE, shape="cria", formats=["fp32", "q4_0"], repeats=3)
    exact, theirs, rounded = quality.measure(settings, length=64).rows
    model = models.build("cria", "fp32")
    with torch.no_grad():
        loss = sum(nats(model(torch.tensor([ids])).logits[0], ids) for ids in whole[:3])
    assert exact.median == pytest.approx(1000 * perplexity(loss, sum(len(ids) - 1 for ids in whole[:3])), rel=1e-4)
    assert theirs.median == pytest.approx(exact.median, rel=1e-4) and exact.min == exact.max
    assert exact.of_limit == 1 and rounded.format == "q4_0" and rounded.of_limit not in (None, 1.0)
    assert len(whole) > 100 and all(len(document) <= 64 for document in whole)


def test_quality_wants_trained_weights_and_every_tokens_logits() -> None:
    with pytest.raises(UsageError, match="--shape cria"):
        quality.measure(BESIDE, length=64)
    with pytest.raises(UsageError, match="leave it out of --against"):
        quality.measure(replace(BESIDE, shape="cria", systems=["llamita", "openvino"]), length=64)


def test_the_limit_of_loading_reads_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CHUNK", 7)
    for name, size in (("a", 100), ("b", 31)):
        (tmp_path / name).write_bytes(bytes(size))
    read: list[tuple[str, int, int]] = []
    monkeypatch.setattr(load, "_read", lambda part: read.append((part[0].name, *part[1:])))
    load.prepare_limit(tmp_path, 2)()
    assert sorted(read) == [("a", 0, 50), ("a", 50, 100), ("b", 0, 15), ("b", 15, 31)]


@pytest.mark.parametrize("system", ["llamita", "transformers"])
def test_memory(system: str, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    ours.save_folder("tiny", "fp32", path)
    held = memory.prepare(system, "tiny", "fp32", path, 1, 2, 3)()
    assert held > 2 * SHAPES["tiny"].vocab_size * SHAPES["tiny"].hidden_size * 4 / 2**20


def test_load_and_memory_begin_a_process_a_turn_and_load_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Measurement] = []
    monkeypatch.setattr(load, "compare", lambda trial, settings: asked.append(trial) or Results())
    monkeypatch.setattr(memory, "compare", lambda trial, settings: asked.append(trial) or Results())
    load.measure(BESIDE)
    memory.measure(BESIDE, tokens=2, depth=3)
    assert [trial.name for trial in asked] == ["load to first token", "start to first token", "memory of tg2 @ d3"]
    assert all(trial.loads and trial.start is ProcessPerTurn for trial in asked)
    assert asked[0].share("fp32", 4.0, 1.0) == 0.25
    needed = (2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)) * 4 + 2 * 2 * 2 * 2 * 16 * 5
    assert asked[2].share("fp32", 2 * needed / 2**20, 1.0) == pytest.approx(0.5)


def test_roofline() -> None:
    found = roofline.measure(shape_name="tiny", length=4, repeats=1, threads=1, nbytes=2**20)
    assert {row.unit for row in found} == {"GB/s", "GFLOP/s", "GOP/s"}
    assert {row.format for row in found} == {"fp32", "bf16", "int8"}
    assert "product 4x160x64" in {row.test for row in found} and "read 1 MiB" in {row.test for row in found}
    assert all(row.median > 0 for row in found)


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "KERNELS", {"torch.sum": bandwidth.KERNELS["torch.sum"]})  # Numba compiles for long
    found = rows.measure(replace(BESIDE, formats=["fp32", "q8_0"]), counts=(1, 3), nbytes=2**20)
    assert [(row.format, row.test) for row in found.rows] == [
        (format, test) for format in ("fp32", "q8_0") for test in ("1 rows", "3 rows")
    ]
    assert all(row.median > 0 and row.of_limit is not None and row.of_limit > 0 for row in found.rows)
    assert set(found.facts()) == {"memory read", "products in fp32, bf16", "products in fp32, bf16, int8"}


def test_torch_keeps_its_threads_when_numba_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba sets OpenMP's number of threads, which is torch's, once in a process: this stands in for that."""
    monkeypatch.setattr(bandwidth.numba, "set_num_threads", lambda count: torch.set_num_threads(2))
    bandwidth.use_threads(1)
    assert torch.get_num_threads() == 1


SMALL = train.TrainingCase("llamita", "tiny", "full", "fp32", 2, 8)


def test_train(monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    monkeypatch.setattr(train, "CURVE", (50, 2, 6))
    measured = train.measure(
        ["llamita", "transformers"], shape_name="tiny", method="full", precision=None, batch=2, length=8,
        repeats=2, threads=1,
    )  # fmt: skip
    ours, theirs, held, their_held, curves = measured.rows
    assert (ours.system, theirs.system, ours.unit) == ("llamita", "transformers", "tok/s")
    assert {ours.format, theirs.format} <= {"fp32", "bf16"} and ours.test == "train full 2x8"
    assert theirs.ratio == pytest.approx(ours.median / theirs.median, rel=1) and ours.of_limit and ours.of_limit > 0
    assert (held.unit, held.test) == ("MiB", "train full 2x8 peak memory") and their_held.ratio
    assert curves.test == "largest difference of 50 losses, transformers" and curves.median < 1e-5
    assert measured.facts()["products in fp32 or bf16"]["unit"] == "GFLOP/s"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_are_trained_as_peft_trains_them(method: str) -> None:
    for system in ("llamita", "transformers"):
        steps = train.Steps(replace(SMALL, system=system, method=method))
        assert len(steps.weights) == 2 * 2 * 7
        losses = [steps.take() for _ in range(8)]
        assert losses[-1] < losses[0]


def test_what_bench_cannot_train_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="cannot train with openvino"):
        train.measure(
            ["openvino"], shape_name="tiny", method="full", precision=None, batch=2, length=8, repeats=2, threads=1
        )
    with pytest.raises(UsageError, match="method is 'dora': use one of full, lora, qlora"):
        train.measure(
            ["llamita"], shape_name="tiny", method="dora", precision=None, batch=2, length=8, repeats=2, threads=1
        )


def test_the_operations_of_training_are_three_times_those_of_a_pass() -> None:
    config = shape("tiny")
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160
    products = 2 * layer + 512 * 64
    assert train.operations(config, "full", 8) == 6 * products + 6 * 2 * 64 * 8
    assert train.operations(config, "lora", 8) == 4 * products + 6 * 2 * 64 * 8


def test_overhead() -> None:
    greedy, sampled = overhead.measure(shape_name="tiny", dtype="float32", batch=2, tokens=4, repeats=2)
    assert 0 < greedy.median < 100 and 0 < sampled.median < 100


def test_guessing_rows_tell_what_was_accepted() -> None:
    rows = speculate.measure(shape_name="tiny", dtype="float32", batches=(2,), tokens=12, repeats=1)
    assert [row.test for row in rows] == ["tg12 batch 2"] * 3 + ["tg12 batch 2, no kernels"] * 3
    plain, lookup, draft = rows[:3]
    assert plain.system == "plain" and plain.ratio is None
    assert lookup.system.startswith("prompt lookup, ") and draft.system.startswith("draft model, ")
    assert draft.ratio == pytest.approx(plain.median / draft.median)


def test_ours_and_transformers_write_the_same() -> None:
    sessions = [systems.open_session(name, "tiny", "fp32", None, 1) for name in ("llamita", "transformers")]
    written = [
        session._model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=6, do_sample=False) for session in sessions
    ]  # type: ignore[attr-defined]
    assert torch.equal(*written)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="'9t' is unknown"):
        shape("9t")
    with pytest.raises(UsageError, match="know the system 'vllm'"):
        named_systems("vllm")
    assert named_systems("") == ["llamita"]
    assert named_systems("transformers, llamita") == ["llamita", "transformers"]


@pytest.mark.parametrize("name", ["transformers", "llama.cpp", "openvino"])
def test_a_library_that_is_not_there_is_named_with_the_line_that_brings_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "version", lambda package, python: "")
    system = SYSTEMS[name]
    line = f"{system.package} is not installed: pip install 'llamita\\[{system.extra}\\]', or give a Python"
    with pytest.raises(UnsupportedError, match=line):
        decode.measure(replace(BESIDE, systems=named_systems(name)), tokens=1, depth=1)


def test_the_command_prints_json_and_leaves_out_what_a_peer_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--shape", "tiny", "--formats", "q8_0", "--against", "transformers", "-p", "4", "--repeats", "1"]
    assert main(["bench", "prefill", *flags, "--threads", "1", "-o", "json"]) == 0
    captured = capsys.readouterr()
    read = json.loads(captured.out)
    assert (
        list(read) == ["machine", "rows"] and read["machine"]["limits"]["products in fp32 or bf16"]["unit"] == "GFLOP/s"
    )
    (row,) = read["rows"]
    assert (row["test"], row["shape"], row["format"], row["system"]) == ("pp4", "tiny", "q8_0", "llamita")
    name, figure = captured.err.splitlines()
    assert name == "pp4 tiny q8_0: llamita"
    assert figure == f"{name} {row['median']:,.3f} tok/s"


@pytest.mark.parametrize(
    "flags",
    [["--shape", "9t"], ["--repeats", "0"], ["--against", "vllm"], ["--formats", "q9"], ["--peers-python", "/nowhere"]],
)
def test_the_command_refuses_in_a_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--shape", "tiny", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
