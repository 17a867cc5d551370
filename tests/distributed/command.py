"""`llamita train` as torchrun starts it, by a process that forks."""

import contextlib
import io
import itertools
import os
import signal
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llamita.cli.main import main
from llamita.train import loop
from llamita.train.metrics import read_log
from tests.distributed import group
from tests.small import save_small_model

SMALL = ("--shape", "pico", "--length", "32", "--micro-rows", "1", "--precision", "fp32", "--threads", "1")


def run(words: list[str]) -> dict[str, Any]:
    """Run a command line; its exit code and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def run_slowly(words: list[str]) -> dict[str, Any]:
    """Run a training that a signal is to end: each step waits longer, for whoever sends it may be kept from it."""
    plain, waits = loop.next_batch, itertools.count(1)

    def next_batch(*given: Any) -> Any:
        time.sleep(0.05 * next(waits))
        return plain(*given)

    loop.next_batch = next_batch
    return run(words)


def answers(found: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """What the processes of `group.start` answer."""
    return [group.answer(*one) for one in found]


def by_torchrun(words: list[str]) -> dict[int, dict[str, Any]]:
    """Run a command line in two processes as `torchrun --nproc-per-node 2` does; what each of them answers."""
    address = f"127.0.0.1:{group.free_port()}"
    config = LaunchConfig(1, 1, 2, rdzv_endpoint=address, rdzv_backend="c10d", run_id="one", start_method="fork")
    return elastic_launch(config, run)(words)


def begun(folder: Path, words: list[str]) -> list[tuple[Any, Any]]:
    """Two ranks that train, once they have taken and saved two more steps."""
    log = folder / "training" / "metrics.jsonl"
    before = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
    found = group.start(2, lambda: run_slowly(words))
    while not (log.exists() and log.read_text(encoding="utf-8").count("\n") > before + 2):
        time.sleep(0.05)
        assert all(process.is_alive() for process, _ in found)
    return found


def stopped(folder: Path, words: list[str]) -> list[dict[str, Any]]:
    """Train on two ranks, try to train there at the same time, and end all by a signal to the second rank alone."""
    found = begun(folder, words)
    intruder = answers(group.start(1, lambda: run(["train", "--resume", "-o", str(folder)])))
    os.kill(found[1][0].pid, signal.SIGTERM)
    return [*answers(found), *intruder]


def killed(folder: Path, words: list[str]) -> dict[str, Any]:
    """Go on with two ranks, and kill the second: what the first says."""
    found = begun(folder, words)
    found[1][0].kill()
    return group.answer(*found[0])


def rewound(folder: Path) -> dict[str, Any]:
    """Rewind a run of two ranks to its third step, and go on from there: is each line of the log as it was?"""
    words = ["train", "rewind", "--step", "3", "-o", str(folder)]
    rewinding, own = answers(group.start(2, lambda: run(words))), folder.with_name(f"{folder.name}-step-3")
    resumed = begun(own, ["train", "--resume", "-o", str(own)])
    os.kill(resumed[1][0].pid, signal.SIGTERM)
    codes = [one["code"] for one in answers(resumed)]
    logs = [read_log(path / "training" / "metrics.jsonl") for path in (folder, own)]
    steps = [{one.step: (one.loss, one.grad_norm) for one in log} for log in logs]
    same = [steps[0][step] == steps[1][step] for step in steps[0].keys() & steps[1].keys()]
    return {"rewinding": rewinding, "codes": codes, "same": same}


def staged(folder: Path, begin: list[str]) -> dict[str, Any]:
    """Train on eight processes that share stages, rows and batches, and go on with the whole model in one process."""
    whole, words = folder.with_name("whole"), [*begin, "--schedule", "constant", "--optimizer", "adamw", "-q"]
    shared = [*words, "--pp", "2", "--cp", "2", "--steps", "2", "-o", str(folder)]
    resume = ["train", "--resume", "--pp", "1", "--cp", "1", "--steps", "3", "-q", "-o", str(folder)]
    ranks = answers(group.start(8, lambda: run(shared)))
    ranks += answers(group.start(1, lambda: run(resume)))
    ranks += answers(group.start(1, lambda: run([*words, "--steps", "3", "-o", str(whole)])))
    logs = [read_log(path / "training" / "metrics.jsonl") for path in (folder, whole)]
    apart = [abs(one.loss - other.loss) for one, other in zip(*logs, strict=True)]
    return {"ranks": ranks, "apart": max(apart)}


def tuned(top: Path, count: int, method: str, line: str, written: str) -> str:
    """The sha256 of what some ranks have made of a model, by a method and lines of data."""
    save_small_model(top / "small")
    data, folder = top / f"{method}.jsonl", top / f"{method}-{count}"
    data.write_text(f"{line}\n" * 9, encoding="utf-8")
    words = ["train", str(data), *SMALL[2:], "--batch-tokens", "128", "--steps", "2", "--exact-scaling", "-q"]
    of = ["--model", str(top / "small"), "--method", method, "-o", str(folder)]
    codes = [one["code"] for one in answers(group.start(count, lambda: run([*words, *of])))]
    assert codes == [0] * count
    return sha256((folder / written).read_bytes()).hexdigest()


def parted(top: Path) -> dict[str, Any]:
    """A DoRA adapter trained by two processes that share each matrix, or the layers, next to that of one process."""
    data, files = top / "lora.jsonl", ("adapter_model.safetensors", "merged/model.safetensors")
    words = ["train", str(data), *SMALL[2:], "--batch-tokens", "128", "--steps", "2", "--optimizer", "adamw", "-q"]
    of = ["--model", str(top / "small"), "--method", "dora", "--lr", "1e-2", "--merge"]
    codes, found = [], []
    for count, dim in ((1, "tp"), (2, "tp"), (2, "pp")):
        folder = top / f"{dim}-{count}"
        shared = [*words, *of, f"--{dim}", str(count), "-o", str(folder)]
        codes += [one["code"] for one in answers(group.start(count, lambda all_words=shared: run(all_words)))]
        found.append([load_file(folder / name) for name in files])
    pairs = [(a[name], b[name]) for other in found[1:] for a, b in zip(found[0], other, strict=True) for name in a | b]
    moved = max(float(one.abs().max()) for name, one in found[0][0].items() if "lora_B" in name)
    return {"codes": codes, "apart": max(float((a - b).abs().max()) for a, b in pairs), "moved": moved}


def last_step(folder: Path) -> int:
    """The step of the latest checkpoint."""
    return int((folder / "training" / "latest").read_text(encoding="utf-8").split("-")[1])


def check(where: str) -> dict[str, Any]:
    """All commands, one after another, in a folder."""
    top = Path(where)
    text, folder = top / "book.txt", top / "run"
    text.write_text("\f".join(f"the {n} llamas eat {n * n} leaves" for n in range(60)), encoding="utf-8")
    begin = ["train", str(text), *SMALL, "--batch-tokens", "128", "--save-every", "1", "-o", str(folder)]
    resume = ["train", "--resume", "-o", str(folder)]
    found: dict[str, Any] = {
        "three": answers(group.start(3, lambda: run([*begin, "--steps", "4"]))),
        "no option": answers(group.start(2, lambda: run(["train", "--learning-rate", "1"]))),
        "no file": answers(group.start(2, lambda: run(["train", str(top / "none.txt"), *SMALL]))),
        "adafactor": answers(group.start(2, lambda: run([*begin, "--exact-scaling", "--optimizer", "adafactor"]))),
        "uneven": answers(group.start(2, lambda: run([*begin, "--exact-scaling", "--micro-rows", "3"]))),
        "is empty": not folder.exists(),
        "stopped": stopped(folder, [*begin, "--steps", "100000"]),
        "saved": last_step(folder),
        "killed": killed(folder, resume),
        "left": last_step(folder),
        "rewound": rewound(folder),
        "staged": staged(top / "staged", begin[:-2]),
    }
    for count in (1, 2):
        adapted = tuned(top, count, "lora", '{"prompt": "1+1=", "completion": "2"}', "adapter_model.safetensors")
        pair = '{"prompt": "1+1=", "chosen": "2", "rejected": "3"}'  # whose reference all ranks compute together
        found |= {f"adapter {count}": adapted, f"dpo {count}": tuned(top, count, "full", pair, "model.safetensors")}
    found["adapted"] = parted(top)
    end = str(found["left"] + 2)
    return found | {"resumed": answers(group.start(1, lambda: run([*resume, "--steps", end, "-q"])))}
