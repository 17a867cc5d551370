"""Rows of measured values, and three formats to print them."""

import csv
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

Facts = dict[str, Any]
OURS = "llamita"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The values of one system in one test.

    ratio: our value divided by this system's. of_limit: the share of the machine's limit.
    """

    test: str
    shape: str
    format: str
    system: str
    median: float
    min: float
    max: float
    unit: str
    ratio: float | None = None
    of_limit: float | None = None


def rows_of(
    values: Mapping[str, Sequence[float]],
    *,
    test: str,
    shape: str,
    format: str,
    unit: str,
    shares: Mapping[str, Sequence[float]] | None = None,
) -> list[Row]:
    """Make one row per system. Ratios and shares are computed turn by turn; the row has their medians."""
    return [
        Row(
            test=test,
            shape=shape,
            format=format,
            system=system,
            **spread(theirs),
            unit=unit,
            ratio=None if system == OURS else median(a / b for a, b in zip(values[OURS], theirs, strict=True)),
            of_limit=None if shares is None else median(shares[system]),
        )
        for system, theirs in values.items()
    ]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return values[0] if len(values) == 1 else quantiles(values, n=20, method="inclusive")[18]


def machine(threads: int) -> Facts:
    """The processor, the versions and the number of threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": model,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def as_json(rows: Sequence[Row], facts: Facts) -> str:
    """{"machine": ..., "rows": [...]}."""
    return json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=2)


def as_csv(rows: Sequence[Row], facts: Facts) -> str:
    """A header line, then one line per row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def as_markdown(rows: Sequence[Row], facts: Facts) -> str:
    """A table, after lines about the machine."""
    lines = [
        *facts_as_lines(facts),
        "",
        "| test | shape | format | system | median | min | max | unit | ours / theirs | of the limit |",
        "|---|---|---|---|--:|--:|--:|---|--:|--:|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        share = "" if row.of_limit is None else f"{100 * row.of_limit:.1f} %"
        numbers = " | ".join(f"{value:,.3f}" for value in (row.median, row.min, row.max))
        names = f"{row.test} | {row.shape} | {row.format} | {row.system}"
        lines.append(f"| {names} | {numbers} | {row.unit} | {ratio} | {share} |")
    return "\n".join(lines)


def facts_as_lines(facts: Facts) -> list[str]:
    """The machine, threads, library versions and limits, as lines of text."""
    versions = {"torch": facts["torch"], **facts.get("peers", {})}
    lines = [f"{facts['cpu']}, {facts['threads']} threads, {', '.join(f'{n} {v}' for n, v in versions.items())}"]
    for name, values in facts.get("limits", {}).items():
        numbers = f"{values['median']:,.1f} {values['unit']} ({values['min']:,.1f} to {values['max']:,.1f})"
        lines.append(f"{name}: {numbers}")
    return [line for pair in zip(lines, [""] * len(lines), strict=True) for line in pair][:-1]


FORMATS: dict[str, Callable[[Sequence[Row], Facts], str]] = {"md": as_markdown, "csv": as_csv, "json": as_json}
