"""TensorBoard's event files hold what the log holds."""

import sys
from pathlib import Path

import pytest

from llamita.errors import UnsupportedError
from llamita.train.metrics import Metrics
from llamita.train.tensorboard import tensorboard

STEPS = [Metrics(1, 4.0, 0.1, 2.0, 60, 64, 0.5), Metrics(2, 3.0, 0.2, 1.0, 120, 64, 0.5, held_out_loss=3.5)]


def test_event_files_hold_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is no dependency of the tests")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path / "events") as write:
        for metrics in STEPS:
            write(metrics)
    found = EventAccumulator(str(tmp_path / "events")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("loss")]
    assert losses == [(1, 4.0), (2, 3.0)]
    assert [(event.step, event.value) for event in found.Scalars("held_out_loss")] == [(2, 3.5)]
    assert found.Scalars("tokens_per_second")[0].value == 128


def test_without_tensorboard_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"tensorboard is not installed: pip install 'llamita\[train\]'"
    with pytest.raises(UnsupportedError, match=message), tensorboard(tmp_path):
        raise AssertionError
