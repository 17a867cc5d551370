"""The log of a run, also after a crash."""

from pathlib import Path

from llamita.train.metrics import Metrics, log, read_log


def line(step: int) -> Metrics:
    held_out = 1.5 if step == 2 else None
    return Metrics(step, 2.0 / step, 0.1, 0.7, 10 * step, 10, 0.5, held_out)


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with log(path, step=0) as file:
        for step in (1, 2, 3):
            file.write(line(step).to_json() + "\n")
        file.write('[]\n{}\n{"step": 4, "tokens_per_second": 1}\n{"step": 4, "lo')
    assert read_log(path) == [line(1), line(2), line(3)]
    with log(path, step=2) as file:
        file.write(line(3).to_json() + "\n")
    assert read_log(path) == [line(1), line(2), line(3)]
    assert '"tokens_per_second": 20.0' in path.read_text(encoding="utf-8")
    assert line(1).tokens_per_second == 20
