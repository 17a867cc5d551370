"""Training on several processes, on the CPU: one launch for many checks, as each imports torch."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes with gloo")


def launched(module: str, *words: str) -> dict[str, Any]:
    """What a module's `check` answers in a process of its own, which forks others."""
    script = f"import json; from tests.distributed import {module}; print(json.dumps({module}.check(*{words!r})))"
    return json.loads(run(script).splitlines()[-1])


@pytest.mark.early
def test_any_number_of_ranks_trains_as_one_process_does() -> None:
    found = launched("work", "parity", "scaling", "resume", "optimizers")

    # 20 steps in fp64, with accumulation, clipping, ragged masks, dropout, and recomputed or written-out layers.
    assert found["parity"].keys() == {"recompute 3", "savings 2"}
    assert max(found["parity"].values()) <= 1e-12

    # With --exact-scaling, weights, optimizer and random state have the same bits, and each step reads the same rows.
    scaling = found["scaling"]
    for name in ("adamw", "muon", "lion"):
        assert scaling[f"{name} 1"] == scaling[f"{name} 2"] == scaling[f"{name} 4"]
    digests = {scaling[f"{name} 1"][0] for name in ("adamw", "muon", "lion")}
    assert len(digests | {scaling["without"]}) == 4

    # 2, then 1, then 3 ranks: each takes over the tensors as they were saved; the run ends where one process does.
    resume = found["resume"]
    assert resume["taken over"] == [True, True]
    assert resume["apart"] <= 1e-12
    assert resume["tokens"][0] == resume["tokens"][1]
    assert resume["exact"]  # 2, 1 and 4 ranks with --exact-scaling: the tensors of the uninterrupted process

    # Adafactor's means of whole rows and columns, and AdamW's blocks of 8 bits.
    optimizers = found["optimizers"]
    refused = optimizers.pop("refused")
    assert optimizers.keys() == {"adafactor", "adamw8bit"}
    assert all(one["taken over"] and one["apart"] <= 1e-12 for one in optimizers.values()), optimizers
    assert optimizers["adamw8bit"]["same"]
    assert (
        "the processes' parts of model.layers.0.mlp.gate_proj.weight (16, 272) do not end where such blocks do"
        in refused[0]
    )
    assert "adafactor adds squares of columns over 2 processes, in an order that their number decides" in refused[1]


@pytest.mark.early
def test_ranks_save_while_they_train_and_one_that_dies_leaves_the_last_checkpoint() -> None:
    found = launched("work", "kills", "saving")
    assert len(found["kills"]) == 9
    assert not any(found["kills"].values()), found["kills"]

    saving = found["saving"]
    assert (saving["before"], saving["between"]) == (None, "step-00000001")
    assert saving["same"], "what was saved is the step's, not that of the steps after it"
    full = "cannot write /step-00000003/shards-00001.safetensors: the disk is full, free some space and try again"
    assert saving["full"] == [full, full]  # of one process, and both say so
    assert saving["left"] == ["latest", "step-00000001", "step-00000002"]
    assert saving["newest"] == "step-00000002"


@pytest.mark.early
def test_one_rank_speaks_for_all(tmp_path: Path) -> None:
    found = launched("command", str(tmp_path))
    assert said(found["three"], 2) == (
        "llamita: a step has 4 rows, which 3 processes cannot share evenly: set --batch-tokens so that it has 3 rows "
        "or another multiple, or start another number of them\n"
    )
    assert "there is no option --learning-rate" in said(found["no option"], 2)
    assert re.fullmatch("llamita: cannot read .*none.txt: it does not exist\n", said(found["no file"], 3))
    assert "adafactor adds squares of columns over 2 processes" in said(found["adafactor"], 6)
    assert "2 processes x 3 rows: set --micro-rows to a divisor of 2\n" in said(found["uneven"], 2)
    assert found["is empty"], "what is wrong with the settings leaves no folder"

    *ranks, intruder = found["stopped"]
    assert [rank["code"] for rank in ranks] == [130, 130]
    assert ranks[1]["err"] == ""
    assert f"stopped and saved at step {found['saved']}: torchrun --nproc-per-node 2 -m llamita" in ranks[0]["err"]
    assert "another process trains in" in said([intruder], 2)

    assert found["adapter 1"] == found["adapter 2"]
    assert found["dpo 1"] == found["dpo 2"]
    adapted = found["adapted"]  # by --tp 2 and by --pp 2, exported and merged
    assert adapted["codes"] == [0] * 5
    assert adapted["apart"] < adapted["moved"] / 100, adapted  # fp32: AdamW divides small gradients by themselves
    assert (
        "process 0 has lost another one, which has died: see what that one said, and start again (train: with --resume)"
        in said([found["killed"]], 1)
    )
    assert found["left"] > found["saved"]

    rewound = found["rewound"]  # two ranks take three steps again, and then those after them
    assert "wrote the model and the checkpoint of step 3" in said(rewound["rewinding"], 0)
    assert rewound["codes"] == [130, 130]
    assert len(rewound["same"]) >= 5
    assert all(rewound["same"])

    staged = found["staged"]  # two stages, two parts of each row and two of each batch, then the whole in one process
    ends = [f"{tmp_path / 'staged'}\n", f"{tmp_path / 'staged'}\n", f"{tmp_path / 'whole'}\n"]
    assert [rank["code"] for rank in staged["ranks"]] == [0] * 10
    assert [rank["out"] for rank in staged["ranks"]] == [ends[0], *[""] * 7, *ends[1:]]
    assert staged["apart"] < 2e-6

    assert found["resumed"] == [{"code": 0, "out": f"{tmp_path / 'run'}\n", "err": ""}]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def said(ranks: list[dict[str, Any]], code: int) -> str:
    """What the first rank wrote to stderr, the last line; the others must have been quiet."""
    first, *others = ranks
    assert first["code"] == code, first
    assert all(rank == {"code": 0, "out": "", "err": ""} for rank in others)
    return first["err"].splitlines(keepends=True)[-1]


def test_torchrun_trains_a_model(tmp_path: Path) -> None:
    """By torchrun's own agent, whose processes fork instead of importing torch anew; the other tests imitate it."""
    text, folder = tmp_path / "book.txt", tmp_path / "out"
    text.write_text("the cat sat on the mat. " * 60, encoding="utf-8")
    words = f"train {text} --shape pico --steps 2 --length 16 --batch-tokens 64 --micro-rows 1 --threads 1"
    words += f" --precision fp32 -q -o {folder}"
    found = run(f"from tests.distributed import command; print(command.by_torchrun({words.split()!r}))")
    assert ast.literal_eval(found.splitlines()[-1]) == {
        0: {"code": 0, "out": f"{folder}\n", "err": ""}, 1: {"code": 0, "out": "", "err": ""}
    }  # fmt: skip
    assert (folder / "training" / "step-00000002").is_dir()
