"""What benchmarks.gpu has measured so far, the time it has left, and its clock."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

DEVICE = "cuda"


@dataclass
class Bench:
    """Rows measured so far, and the time that is left."""

    output: Path
    deadline: float
    facts: list[str] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bandwidth: float = 0.0  # bytes a second
    products: float = 0.0  # FLOP a second, bf16

    @contextmanager
    def part(self, name: str, seconds: float) -> Iterator[bool]:
        """Gives whether there is time for a part of about so many seconds; what fails is left out with its reason."""
        has_time = self.deadline - time.monotonic() > seconds
        if not has_time:
            self.left_out.append(f"{name}: no time left")
        try:
            yield has_time
        except Exception as error:  # a part that fails must not cost the others
            reason = (str(error).splitlines() or [""])[0]
            self.left_out.append(f"{name}: {type(error).__name__}, {reason[:200]}")
            print(self.left_out[-1], flush=True)
        torch.cuda.empty_cache()
        self.write()

    def add(
        self, test: str, shape: str, form: str, system: str, rates: Sequence[float], unit: str, **shares: float
    ) -> None:
        """A row: the median, least and most of some rates; `limit` the rate that would be all this GPU can do, `ours`
        the median of ours where the row is another's."""
        middle = median(rates)
        numbers = [f"{value:,.1f}" for value in (middle, min(rates), max(rates))]
        ratio = f"{shares['ours'] / middle:.2f}" if "ours" in shares else ""
        share = f"{100 * middle / shares['limit']:.0f} %" if shares.get("limit") else ""
        self.rows.append((test, shape, form, system, *numbers, unit, ratio, share))
        print(*self.rows[-1], sep=" | ", flush=True)

    def write(self) -> None:
        """Write the page anew; called after every part, so that a run that is cut off leaves what it had."""
        header = ("test", "shape", "format", "system", "median", "min", "max", "unit", "ours / theirs", "of the limit")
        lines = ["# On a GPU", "", "`python -m benchmarks.gpu`", "", *(f"- {fact}" for fact in self.facts), ""]
        lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * 4 + ["--:"] * 3 + ["---", "--:", "--:"])]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        if self.left_out:
            lines += ["", "Left out:", "", *(f"- {reason}" for reason in self.left_out)]
        self.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def timed(calls: Sequence[Callable[[], object]], repeats: int = 5) -> list[float]:
    """Seconds of one call, several times: all of them recorded as one graph, so that Python's time does not count."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return [elapsed(graph.replay) / len(calls) for _ in range(repeats)]


def elapsed(call: Callable[[], object]) -> float:
    """Seconds that the GPU takes for a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
