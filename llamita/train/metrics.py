"""What is measured at every step, and its log: one line of JSON a step."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from llamita.files.disk import explained, read_text, write_text


@dataclass(frozen=True, slots=True)
class Metrics:
    """One step: the loss, the learning rate, the gradient's norm before clipping.

    loss: nats per token; per pair or answer of tasks that count these.
    tokens: learned since the run began; step_tokens: read in this step, padding too; seconds: of this step.
    held_out_loss: where it was measured. figures: others that the task measures there, by name.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    step_tokens: int
    seconds: float
    held_out_loss: float | None = None
    figures: dict[str, float] | None = None

    @property
    def tokens_per_second(self) -> float:
        """The speed of this step."""
        return self.step_tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> str:
        """One line, without what was not measured."""
        values = {name: value for name, value in asdict(self).items() if value is not None and value != {}}
        return json.dumps(values | {"tokens_per_second": round(self.tokens_per_second, 1)})


def read_log(path: Path) -> list[Metrics]:
    """The whole lines of a log; what is none, as a last one that a crash cut, is left out."""
    found = []
    for line in read_text(path).splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            values = json.loads(line)
            values.pop("tokens_per_second")
            found.append(Metrics(**values))
    return found


@contextmanager
def log(path: Path, *, step: int) -> Iterator[TextIO]:
    """The log to append to, without the lines after `step`: a resumed run takes those steps again."""
    past = [metrics for metrics in read_log(path) if metrics.step <= step]
    write_text(path, "".join(f"{metrics.to_json()}\n" for metrics in past))
    with explained("write", path), path.open("a", encoding="utf-8", buffering=1) as file:
        yield file
