"""Measured rows, and ways to print them."""

import csv
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system in one test. `ratio` is ours over that system, in the row's unit."""

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


def rows_of(values: Mapping[str, Sequence[float]], *, test: str, shape: str, format: str, unit: str) -> list[Row]:
    """A row for each system from its measurements; ratios are medians of the turn-by-turn ratios."""
    ours = values["llamita"]
    return [
        Row(
            test=test,
            shape=shape,
            format=format,
            system=system,
            median=median(theirs),
            min=min(theirs),
            max=max(theirs),
            unit=unit,
            ratio=None if system == "llamita" else median(a / b for a, b in zip(ours, theirs, strict=True)),
        )
        for system, theirs in values.items()
    ]


def machine(threads: int) -> Facts:
    """What the rows were measured on, and with how many threads."""
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
    """A header line and a line for each row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def as_markdown(rows: Sequence[Row], facts: Facts) -> str:
    """A table to read, and a line about the machine."""
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}",
        "",
        "| test | shape | format | system | median | min | max | unit | ours / theirs |",
        "|---|---|---|---|--:|--:|--:|---|--:|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        numbers = " | ".join(f"{value:,.3f}" for value in (row.median, row.min, row.max))
        lines.append(f"| {row.test} | {row.shape} | {row.format} | {row.system} | {numbers} | {row.unit} | {ratio} |")
    return "\n".join(lines)


FORMATS: dict[str, Callable[[Sequence[Row], Facts], str]] = {"md": as_markdown, "csv": as_csv, "json": as_json}
