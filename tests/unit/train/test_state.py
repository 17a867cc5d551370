"""Checkpoints: exact resume, whatever dies, and whatever is damaged."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llamita.data.documents import Document
from llamita.data.packing import pack
from llamita.errors import BrokenFileError, LlamitaError, UsageError
from llamita.files.disk import read_json
from llamita.train import state
from llamita.train.draft import MANIFEST
from llamita.train.optim import OPTIMIZERS
from tests.architecture.source import ROOT
from tests.unit.train.tiny import RECIPE, go_on, make_rows, make_run, with_optimizer
from tests.zygote import Zygote, result

POINTS = 30


def manifest(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / MANIFEST)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_stopped_and_resumed_twice_ends_with_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    recipe = with_optimizer(optimizer)
    assert RECIPE.rows * 6 > len(make_rows())  # the second epoch begins on the way
    whole = go_on(tmp_path / "whole", until=6, recipe=recipe)
    for until in (1, 3, 6):
        parts = go_on(tmp_path / "parts", until=until, recipe=recipe)
    assert manifest(parts) == manifest(whole)
    assert manifest(go_on(tmp_path / "other", until=5, recipe=recipe)) != manifest(whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.early
def test_kill_9_anywhere_in_a_save_loses_nothing(zygote: Zygote) -> None:
    script = f"from tests.unit.train import kills; kills.main({POINTS})"
    found = json.loads(result(zygote.start(script, os.environ | {"PYTHONPATH": str(ROOT)})))
    assert found["killed"] == POINTS
    assert found["calls"] > 10 * POINTS
    assert (found["is_equal"], found["distinct"]) == (True, 1)


def test_only_two_checkpoints_stay_and_the_latest_is_named(tmp_path: Path) -> None:
    go_on(tmp_path, until=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000004", "step-00000006"]
    assert (tmp_path / "latest").read_text(encoding="utf-8") == "step-00000006\n"


def test_a_flipped_bit_is_seen_and_the_checkpoint_before_is_taken(tmp_path: Path) -> None:
    last = go_on(tmp_path, until=6)
    whole = manifest(last)
    data = bytearray((last / state.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (last / state.WEIGHTS).write_bytes(data)
    assert state.newest(tmp_path).name == "step-00000004"
    assert manifest(go_on(tmp_path, until=6)) == whole
    for path in tmp_path.glob("step-*"):
        (path / state.MEMORY).unlink()
    with pytest.raises(BrokenFileError, match=r"damaged .* no checkpoint is whole"):
        state.newest(tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = go_on(tmp_path, until=2)
    run = make_run(make_rows())
    state.restore(run, tmp_path)
    run.step = 3

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        named = (
            r"step-0000000\d/model\.safetensors: the disk is full, free some space and try again"  # and not the draft
        )
        with pytest.raises(LlamitaError, match=named):
            state.save(run, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", before.name]
    assert state.newest(tmp_path) == before


def test_a_run_is_not_resumed_on_other_data_or_another_model(tmp_path: Path) -> None:
    go_on(tmp_path, until=2)
    tokens = torch.zeros(9, dtype=torch.int32)
    with pytest.raises(UsageError, match=r"the data is not what .* was trained on"):
        state.restore(make_run(pack([Document(tokens, tokens, is_splittable=True)], 16)), tmp_path)
    run = make_run(make_rows())
    del run.model.model.layers[1]
    with pytest.raises(BrokenFileError, match="another model's weights"):
        state.restore(run, tmp_path)
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        state.newest(tmp_path / "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_a_folder_is_one_run_s(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match="another process trains in")
    with state.locked(tmp_path), refused, state.locked(tmp_path):
        pass
    with state.locked(tmp_path):
        pass
