"""Served models: their names, and how many requests they take."""

from pathlib import Path

import pytest

from llamita.errors import UsageError
from llamita.loader import load
from llamita.server.errors import RequestError
from llamita.server.models import Models, served_models, short_name


def test_names_are_found_and_prompts_checked(small_path: Path) -> None:
    with load(small_path).engine() as engine:
        (model,) = served_models("a", engine)
        models = Models([model])
        assert (list(models), models.find("a"), models.engines) == ([model], model, [model.served])
        with pytest.raises(RequestError, match="no model 'b' here: the models are a"):
            models.find("b")
        with pytest.raises(RequestError, match="at most 128 tokens"):
            model.prompt_ids("a" * 1000)
        with pytest.raises(RequestError, match="outside the vocabulary"):
            model.checked_ids([0, 260], "prompt")
        with pytest.raises(UsageError, match="--alias"):
            Models([model, model])
        with pytest.raises(UsageError):
            Models([])


def test_a_fingerprint_is_known_once_the_weights_are_read(small_path: Path) -> None:
    with load(small_path).engine() as engine:
        (model,) = served_models("a", engine)
        assert model.system_fingerprint is None
        assert engine.facts().system_fingerprint == model.system_fingerprint


def test_adapters_have_names_of_their_own_and_the_engine_of_their_model(small_path: Path, adapter: Path) -> None:
    with load(small_path, adapters={"x": adapter, "y": adapter}).engine() as engine:
        models = Models(served_models("a", engine))
        assert [(model.name, model.adapter) for model in models] == [("a", None), ("x", "x"), ("y", "y")]
        assert len(models.engines) == 1
        assert models.find("x").texts.model is not models.find("a").texts.model
        with pytest.raises(UsageError, match="a name of its own"):
            Models(served_models("x", engine))


def test_models_are_named_by_what_they_were_loaded_from(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.gguf").touch()
    assert short_name(str(tmp_path / "folder/")) == "folder"
    assert short_name(str(tmp_path / "file.gguf")) == "file"
    assert short_name("org/name:Q4_K_M") == "org/name:Q4_K_M"
