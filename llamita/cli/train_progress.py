"""The progress of training: a bar on a terminal, else a line now and then."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamita.cli import terminal

if TYPE_CHECKING:
    from llamita.train.metrics import Metrics
    from llamita.train.session import Session


@contextmanager
def shown(session: "Session", *, is_quiet: bool) -> "Iterator[Callable[[Metrics], None]]":
    """Shows each step: a bar on a terminal, else a line now and then."""
    if is_quiet or not terminal.has_color(sys.stderr):
        yield lambda metrics: None if is_quiet else note(metrics, session.run.steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("step {task.completed} of {task.total}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=session.run.steps, completed=session.run.step)
        yield lambda metrics: bar.update(
            task, completed=metrics.step, total=session.run.steps, description=figures(metrics)
        )


def note(metrics: "Metrics", steps: int) -> None:
    """Print a line for every tenth of the steps."""
    if metrics.step % max(1, steps // 10) == 0 or metrics.step == steps:
        terminal.note(f"step {metrics.step} of {steps}: {figures(metrics)}")


def figures(metrics: "Metrics") -> str:
    """What is said of a step."""
    held_out = "" if metrics.held_out_loss is None else f"held out {metrics.held_out_loss:.3f}, "
    return f"loss {metrics.loss:.3f}, {held_out}{metrics.tokens_per_second:,.0f} tokens/s"
