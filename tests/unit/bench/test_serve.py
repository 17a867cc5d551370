"""Serving is measured on a tiny shape, and peers get the same workload; receipts are replayed by number."""

from dataclasses import replace

import pytest
import torch

from llamita.bench import fairness, gemm, models, replays, serve
from llamita.bench.compare import Settings
from llamita.bench.ours import OwnSession, fused
from llamita.bench.shapes import shape
from llamita.bench.workload import Cost, Workload
from llamita.engine.limits import EngineLimits

SETTINGS = Settings(shape="tiny", formats=["fp32"], systems=["llamita"], repeats=1, threads=1)


def test_rows_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "MIN_SECONDS", 0.001)
    found = serve.measure(SETTINGS, counts=(1, 3), nbytes=2**20)
    assert [row.test for row in found.rows] == [
        "1 at once", "1 at once, first token p95", "3 at once", "3 at once, first token p95",
    ]  # fmt: skip
    assert all(row.median > 0 for row in found.rows)
    assert [row.of_limit is None for row in found.rows] == [False, True, False, True]


def test_a_workload_is_the_same_for_the_same_seed_and_shares_beginnings() -> None:
    config = shape("tiny")
    work = Workload.of(4, config, 1)
    assert work == Workload.of(4, config, 1) != Workload.of(4, config, 2)
    assert len(work.prompts) == len(work.answers) == 8
    assert work.prompts[1][:64] == work.prompts[3][:64] != work.prompts[2][:64]
    assert work.written == sum(work.answers)
    assert work.beginning().prompts == work.prompts[:4]
    assert work.beginning().written <= 4 * 8


def test_the_least_time_is_of_reading_or_of_products() -> None:
    cost = Cost(read=100.0, operations=3.0)
    assert cost.seconds(2, computed=10, written=4, memory=50.0, rate=1e9) == 4 / 2 * 100 / 50
    assert cost.seconds(2, computed=10, written=4, memory=1e9, rate=7.0) == 14 * 3 / 7


def test_our_session_writes_what_is_asked() -> None:
    session = OwnSession(fused(models.build("tiny", "fp32")))
    work = replace(Workload.of(2, shape("tiny"), 0), answers=[3, 4, 5, 6])
    assert session.serve_seconds(work) > 0
    assert session.serve_seconds(work) > 0  # by the same engine


def test_short_requests_behind_a_long_one() -> None:
    found = fairness.measure(SETTINGS, long=90)
    assert [row.test for row in found.rows] == ["first token p95, alone", "first token p95, during 90 tokens"]
    assert found.rows[0].ratio == 1
    assert all(row.median > 0 for row in found.rows)


def test_receipts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = EngineLimits(max_num_seqs=8, block_size=16, num_blocks=32)
    found = replays.measure(replace(SETTINGS, formats=["bf16"]), count=12, limits=crowded)
    values = {row.test: row.median for row in found.rows}
    assert values["receipts"] == values["receipts that replay"] == 12
    monkeypatch.setattr(replays, "differences", lambda *_: ["tokens"])
    found = replays.measure(replace(SETTINGS, formats=["bf16"]), count=2, limits=crowded)
    assert found.rows[1].median == 0
    assert torch.get_num_threads() == 1
