"""Metrics as TensorBoard's event files, for those who watch runs there; the library is optional."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from llamita.errors import UnsupportedError
from llamita.train.metrics import Metrics

NAMES = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "held_out_loss")


@contextmanager
def tensorboard(folder: Path) -> Iterator[Callable[[Metrics], None]]:
    """What takes the metrics of each step and writes them to a folder of event files.

    Raises UnsupportedError without tensorboard.
    """

    def write(metrics: Metrics) -> None:
        for name in NAMES:
            if (value := getattr(metrics, name)) is not None:
                writer.add_scalar(name, value, metrics.step)

    with library().SummaryWriter(str(folder)) as writer:
        yield write


def library() -> ModuleType:
    """torch's writer of event files. Raises UnsupportedError without tensorboard."""
    try:
        return import_module("torch.utils.tensorboard")
    except ImportError:
        raise UnsupportedError("tensorboard is not installed: pip install 'llamita[train]'") from None
