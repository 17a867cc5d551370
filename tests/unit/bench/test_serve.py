"""Serving is measured on a tiny shape, and peers get the same workload; receipts are replayed by number."""

from dataclasses import replace

import pytest
import torch

from llamita.bench import fairness, gemm, models, replays, serve
from llamita.bench.compare import Settings
from llamita.bench.formats import Operations, prompt_operations
from llamita.bench.ours import OwnSession, engine_of, fused
from llamita.bench.ours import serve as serve_all
from llamita.bench.shapes import shape
from llamita.bench.workload import Cost, Need, Workload
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
    assert found.rows[0].of_limit == found.rows[0].median / found.limits["1 at once in fp32"][0]
    assert {"memory read", "products in fp32, as attention's"} < found.limits.keys()


def test_no_token_ends_an_answer() -> None:
    """cria's end tokens come early behind prompts that say nothing."""
    work = Workload(4, [[one, two] for one in range(6) for two in range(6)], [40] * 36)
    with engine_of(fused(models.build("cria", "bf16")), work.at_once) as engine:
        handles, _ = serve_all(engine, work)
    assert {len(handle.result().token_ids) for handle in handles} == {40}


def test_a_workload_is_the_same_for_the_same_seed_and_shares_beginnings() -> None:
    work = Workload.of(4, "tiny", 1)
    assert work == Workload.of(4, "tiny", 1) != Workload.of(4, "tiny", 2)
    assert len(work.prompts) == len(work.answers) == 8
    assert work.prompts[1][:64] == work.prompts[3][:64] != work.prompts[2][:64]
    assert work.written == sum(work.answers)
    assert work.beginning().prompts == work.prompts[:4]
    assert work.beginning().written <= 4 * 8
    assert len(Workload.of(1, "cria", 1).prompts) == len(Workload.of(32, "cria", 1).prompts) == 160


def test_what_texts_need_is_what_is_counted_token_by_token() -> None:
    texts = [(5, 0, 3), (7, 4, 1), (2, 1, 6)]
    computed = asked = pairs = read = 0
    for prompt, cached, written in texts:
        for token in range(cached, prompt + written - 1):
            computed, pairs = computed + 1, pairs + token + 1
            asked += token >= prompt - 1
            read += token if token >= prompt else cached * (token == cached)
    assert Need.of(texts) == Need(computed, asked, pairs, read)


def test_the_least_time_is_of_reading_or_of_products() -> None:
    cost = Cost(weights=100.0, cached=7.0, operations=Operations(layers=3.0, logits=5.0, pair=2.0))
    need = Need(computed=10, asked=4, pairs=30, read=20)
    fast = {"memory": 1e9, "rate": 1e9, "attention_rate": 1e9}
    assert cost.seconds(need, 2, **fast | {"memory": 50.0}) == (2 * 100 + 20 * 7) / 50
    assert cost.seconds(need, 2, **fast | {"rate": 7.0}) == pytest.approx((10 * 3 + 4 * 5) / 7)
    assert cost.seconds(need, 2, **fast | {"rate": 7.0, "attention_rate": 8.0}) == (10 * 3 + 4 * 5) / 7 + 30 * 2 / 8


@pytest.mark.parametrize(("format", "itemsize"), [("fp32", 4), ("q8_0", 2)])
def test_the_cost_of_a_prompt_and_a_token_is_a_prefills(format: str, itemsize: int) -> None:
    config, rate = shape("tiny"), 1e6
    cost = Cost.of(config, format)
    least = cost.seconds(Need.of([(9, 0, 1)]), 1, memory=1e99, rate=rate, attention_rate=rate)
    assert least == pytest.approx(prompt_operations(config, 9) / rate)
    assert cost.cached == itemsize * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def test_our_session_writes_what_is_asked() -> None:
    session = OwnSession(fused(models.build("tiny", "fp32")))
    work = replace(Workload.of(2, "tiny", 0), answers=[3, 4, 5, 6])
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
