"""Rows: medians, ratios and shares of each turn, printed in three ways."""

import json

import pytest

from llamita.bench import report
from llamita.bench.compare import Measurement, Results, Settings, record

VALUES = {"llamita": [1.0, 2.0, 3.0], "peer": [2.0, 2.0, 12.0]}
FIELDS = ["test", "shape", "format", "system", "median", "min", "max", "unit", "ratio", "of_limit"]


def test_rows_carry_medians_and_the_median_of_turn_by_turn_ratios() -> None:
    shares = {"llamita": [0.1, 0.5, 0.6], "peer": [0.2, 0.3, 0.9]}
    ours, theirs = report.rows_of(VALUES, test="t", shape="s", format="f", unit="s", shares=shares)
    assert (ours.median, ours.min, ours.max, ours.ratio, ours.of_limit) == (2.0, 1.0, 3.0, None, 0.5)
    assert theirs.ratio == 0.5 and theirs.of_limit == 0.3


def test_formats() -> None:
    rows = report.rows_of(VALUES, test="t", shape="s", format="f", unit="s")
    limits = {"memory read": {"median": 30.0, "min": 20.0, "max": 40.0, "unit": "GB/s"}}
    facts = {**report.machine(threads=3), "peers": {"peer": "1.2"}, "limits": limits}
    read = json.loads(report.as_json(rows, facts))
    assert list(read) == ["machine", "rows"]
    assert read["machine"]["threads"] == 3 and read["machine"]["limits"] == limits
    assert [list(row) for row in read["rows"]] == [FIELDS, FIELDS]
    assert report.as_csv(rows, facts).splitlines()[0] == ",".join(FIELDS)
    table = report.as_markdown(rows, facts)
    assert "| t | s | f | peer | 2.000 | 2.000 | 12.000 | s | 0.500 |  |" in table
    assert "peer 1.2" in table and "memory read: 30.0 GB/s (20.0 to 40.0)" in table


def test_ours_is_told_from_all_turns_a_peer_and_its_share_from_its_own() -> None:
    limits = [[10.0, 20.0], [40.0, 40.0]]
    turns = [
        {"llamita": [2.0, 4.0], "limit": limits[0], "one": [1.0, 4.0]},
        {"llamita": [8.0, 8.0], "limit": limits[1], "two": [4.0, 16.0]},
    ]
    test = Measurement(name="t", unit="u", prepare=len, arguments=(), share=lambda _, value, limit: value / limit)
    settings = Settings(shape="s", formats=["f"], systems=["llamita"], repeats=2, threads=1)
    measured = Results()
    record(test, settings, "f", turns, measured)
    ours, one, two = measured.rows
    assert (ours.min, ours.median, ours.max) == (2.0, 6.0, 8.0)
    assert ours.of_limit == pytest.approx(0.2)
    assert one.ratio == pytest.approx(1.5) and one.of_limit == pytest.approx(0.15)
    assert two.ratio == pytest.approx(1.25) and two.of_limit == pytest.approx(0.25)
    assert measured.limits == {}  # the test has none: ones stand in for it
