"""Names resolved to folders; what the hub answers as one sentence with the right exit code."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from llamita.errors import AccessError, LlamitaError, NotFoundError, UsageError
from llamita.files.hub import resolve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A hub that answers with a folder or an error, and remembers what it was asked."""
    state: dict[str, Any] = {"answer": str(tmp_path), "asked": []}

    def snapshot_download(repository: str, **options: Any) -> str:
        state["asked"].append((repository, options))
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return state["answer"]

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def answered(kind: type[Exception], status: int) -> Exception:
    """An error as the hub's library raises it, made without that library's own HTTP library."""
    error = kind.__new__(kind)
    error.args = ("no\nsecond line",)
    error.response = SimpleNamespace(status_code=status)  # pyright: ignore[reportAttributeAccessIssue]
    return error


def test_a_folder_is_itself(tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("org/name") == Path("org/name")
    assert resolve("~/org") == tmp_path / "org"
    assert hub["asked"] == []


@pytest.mark.parametrize(
    "name", ["./org/name", "/org/name", "~/org-name", "../a/b", "model", "a/b/c", "a b/c", "", "a/.."]
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(
    name: str, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="no folder"):
        resolve(name)
    assert hub["asked"] == []


def test_a_file_is_a_usage_error(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_repository_comes_from_the_hub(hub: dict[str, Any], tmp_path: Path):
    assert resolve("org/name", revision="v1") == tmp_path
    [(repository, options)] = hub["asked"]
    assert repository == "org/name"
    assert options["revision"] == "v1"
    assert options["local_files_only"] is False
    assert not any("bin" in pattern or "py" in pattern for pattern in options["allow_patterns"])


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_by_argument_or_environment(hub: dict[str, Any], value: str, monkeypatch: pytest.MonkeyPatch):
    hub["answer"] = errors.LocalEntryNotFoundError("not here")
    with pytest.raises(NotFoundError, match="not in the local cache"):
        resolve("org/name", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(NotFoundError, match="not in the local cache"):
        resolve("org/name")
    assert all(options["local_files_only"] for _, options in hub["asked"])


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (answered(errors.RepositoryNotFoundError, 404), NotFoundError, "no model org/name"),
        (answered(errors.RevisionNotFoundError, 404), NotFoundError, "no revision 'v1'"),
        (answered(errors.GatedRepoError, 403), AccessError, "gated"),
        (answered(errors.HfHubHTTPError, 403), AccessError, "refuses access"),
        (answered(errors.HfHubHTTPError, 503), NotFoundError, "check the network"),
        (errors.HFValidationError("bad name"), NotFoundError, "no model org/name"),
        (errors.LocalEntryNotFoundError("no\nnet"), NotFoundError, r"\(no\): check the network"),
        (ConnectionError("refused"), NotFoundError, r"\(refused\): check the network"),
        (PermissionError(13, "Permission denied"), AccessError, "HF_HOME"),
        (RuntimeError(), NotFoundError, "RuntimeError"),
    ],
)
def test_what_the_hub_says_is_one_sentence(
    hub: dict[str, Any], answer: Exception, kind: type[LlamitaError], message: str
):
    hub["answer"] = answer
    with pytest.raises(kind, match=message) as caught:
        resolve("org/name", revision="v1")
    assert "\n" not in str(caught.value)


def test_the_hub_library_is_loaded_only_for_the_hub(tmp_path: Path):
    import subprocess

    code = f"import sys; from llamita.files.hub import resolve; resolve({str(tmp_path)!r});"
    code += "print([name for name in ('torch', 'huggingface_hub') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
