"""Comparisons of systems that take turns."""

import math

from llamita.bench.compare import Measurement, Settings, compare
from tests.unit.bench.jobs import only_ours


def test_a_peer_that_ends_takes_no_figures_with_it() -> None:
    said: list[str] = []
    test = Measurement(name="any", unit="tok/s", prepare=only_ours, arguments=(), share=lambda *_: math.nan)
    settings = Settings(
        shape="tiny", formats=["fp32"], systems=["llamita", "transformers"], repeats=1, threads=1, report=said.append
    )
    rows = compare(test, settings).rows
    assert [(row.system, row.median) for row in rows] == [("llamita", 2.0)]
    assert "transformers was not measured: the benchmark process ended with exit code 3" in said[1]
    assert said[-1] == "any tiny fp32: llamita 2.000 tok/s"  # at once, not only in the table at the end
