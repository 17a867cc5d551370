"""Served models: their names, and how many requests they take."""

from pathlib import Path

import pytest

from llamita.engine.limits import EngineLimits
from llamita.errors import ClosedError, OverloadedError, UsageError
from llamita.loader import load
from llamita.server.errors import RequestError
from llamita.server.models import Models, ServedModel, short_name


def test_admission_counts_and_names_are_found(small_path: Path) -> None:
    llm = load(small_path)
    engine = llm.engine(EngineLimits(max_num_seqs=2, max_num_queued=1))
    with engine:
        model = ServedModel("a", engine)
        models = Models([model])
        assert (list(models), models.find("a")) == ([model], model)
        with pytest.raises(RequestError, match="no model 'b' here: the models are a"):
            models.find("b")
        model.admit(3)
        assert model.is_full
        with pytest.raises(OverloadedError, match="try again later"):
            model.admit(1)
        model.release(2)
        model.admit(1)
        with pytest.raises(RequestError, match="at most 128 tokens"):
            model.prompt_ids("a" * 1000)
        with pytest.raises(RequestError, match="outside the vocabulary"):
            model.checked_ids([0, 260], "prompt")
        with pytest.raises(UsageError, match="--alias"):
            Models([model, model])
        with pytest.raises(UsageError):
            Models([])
    with pytest.raises(ClosedError):
        model.admit(1)


def test_models_are_named_by_what_they_were_loaded_from(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.gguf").touch()
    assert short_name(str(tmp_path / "folder/")) == "folder"
    assert short_name(str(tmp_path / "file.gguf")) == "file"
    assert short_name("org/name:Q4_K_M") == "org/name:Q4_K_M"
