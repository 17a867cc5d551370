"""A model that two processes share is served as one process serves it, and none of them hangs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.cli.main import main
from llamita.engine.receipt import Receipt, differences
from llamita.loader import load
from tests.distributed.group import free_port
from tests.distributed.launch import launch
from tests.distributed.serving_cases import BODY, written


@pytest.fixture(scope="module")
def ranks(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    ports = (str(free_port()), str(free_port()))
    return launch(
        "tests.distributed.serving_cases:serving", 2, tmp_path_factory.mktemp("served"), str(small_path), *ports
    )


def test_the_engine_writes_what_one_process_writes(ranks: list[dict[str, Any]], small_path: Path) -> None:
    one, shared = written(load(small_path, kernels="off", device="cpu")), ranks[0]["written"]
    assert shared["tokens"] == one["tokens"]
    assert shared["prompts"] == one["prompts"]
    assert torch.equal(shared["states"], one["states"])
    assert shared["preemptions"] == one["preemptions"] > 0
    # A receipt has the whole weights, and says that several processes have computed.
    assert shared["facts"].weights == one["facts"].weights
    assert shared["facts"].arithmetic["torch"] == f"{one['facts'].arithmetic['torch']}, 2 processes"


def test_the_first_process_leads_and_the_others_follow(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["misplaced"].startswith("an engine runs in the first of the processes that share a model")


def test_a_process_that_fails_ends_all(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["lost"] == (
        "the engine has failed: process 1 ended in the middle: see what it said, and start all again"
    )
    assert ranks[1]["lost"] == "a pass of all processes failed: no memory for this"


def test_the_command_serves_and_ends_by_a_signal(ranks: list[dict[str, Any]], small_path: Path) -> None:
    first, second = (rank["command"] for rank in ranks)
    assert (first["code"], second) == (0, {"code": 0, "answers": []})
    (answer,) = first["answers"]
    llm = load(small_path, kernels="off", device="cpu")
    one = llm.generate(BODY["prompt"], max_tokens=BODY["max_tokens"], temperature=0.0)
    assert answer["choices"][0]["text"] == one.text
    receipt = Receipt.from_dict(answer["receipts"][0])
    with llm.engine() as engine:
        handle = engine.submit(BODY["prompt"], max_tokens=BODY["max_tokens"], temperature=0.0)
        handle.result()
        found = differences(receipt, engine.receipt(handle))
    names = [line.split(" is ")[0] for line in found]  # options: its seed, which is drawn
    assert sorted(names) == ["arithmetic", "options"]
    assert any("2 processes in the receipt" in line for line in found)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--adapter", "a=b"], "--tp shares one plain model between processes, which leave --adapter out"),
        (["-m", "cria", "-m", "cria"], "leave several models out"),
        (["--replicas", "2"], "leave --replicas out"),
        ([], "2 processes are asked for, and this is a single one: start it by torchrun --nproc-per-node 2"),
    ],
)
def test_what_does_not_go_with_it_is_said(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--tp", "2", *words]) == 2
    assert sentence in capsys.readouterr().err
