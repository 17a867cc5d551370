"""Names resolved to folders; what the hub answers as one sentence with the right exit code."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from llamita.errors import AccessError, LlamitaError, NotFoundError, UsageError
from llamita.files.hub import is_gguf_name, resolve, resolve_gguf


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


def test_a_gguf_file_says_what_reads_it(tmp_path: Path, hub: dict[str, Any]):
    (tmp_path / "model.gguf").touch()
    for name in (str(tmp_path / "model.gguf"), "org/name:Q4_K_M"):
        with pytest.raises(UsageError, match=re.escape(f"GGUF file, not a folder: llamita.load({name!r})")):
            resolve(name)
    assert hub["asked"] == []


def test_names_of_gguf_files_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert is_gguf_name("org/name:Q4_K_M") and is_gguf_name("org/name:a-b.c.gguf")
    for name in (
        "org/name",
        "model.gguf",
        "org/name.gguf",
        "./org/name:Q4",
        "C:/org/name",
        "org/name:",
        "org/name:a/b",
    ):
        assert not is_gguf_name(name)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name:Q4").touch()
    assert not is_gguf_name("org/name:Q4")


FILES = (
    "tiny-Q4_K_M.gguf", "tiny-Q4_K_S.gguf", "tiny.q4_k.gguf", "tiny-BF16.gguf", "mmproj-F16.gguf", "tiny-F16.gguf",
    "Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf", "a-Q6_K.gguf", "b-Q6_K.gguf",
    "IQ2.gguf",
)  # fmt: skip


@pytest.fixture
def gguf_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A hub with a repository of GGUF files, which downloads what is asked for as the hub's library would."""
    state: dict[str, Any] = {"got": []}

    def snapshot_download(
        repository: str, *, allow_patterns: list[str], ignore_patterns: list[str], **more: Any
    ) -> str:
        kept = filter_repo_objects(FILES, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        state["got"] = sorted(kept)
        state.update(more, repository=repository)
        for name in state["got"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


@pytest.mark.parametrize(
    ("tag", "got"),
    [
        ("Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        ("q4_k_m", ["tiny-Q4_K_M.gguf"]),
        ("Q4_K", ["tiny.q4_k.gguf"]),
        ("F16", ["tiny-F16.gguf"]),
        ("iq2", ["IQ2.gguf"]),
        ("tiny-Q4_K_S.gguf", ["tiny-Q4_K_S.gguf"]),
        ("Q8_0", ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf"]),
        (
            "tiny-Q8_0-00001-of-00002.gguf",
            ["Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf"],
        ),
    ],
)
def test_one_quantization_is_downloaded_and_no_other(
    tag: str, got: list[str], gguf_hub: dict[str, Any], tmp_path: Path
):
    (tmp_path / "left-F32.gguf").touch()  # downloaded before
    assert resolve_gguf(f"org/name:{tag}", revision="v1", offline=True) == tmp_path / got[0]
    assert gguf_hub["got"] == got
    assert gguf_hub["repository"] == "org/name"
    assert (gguf_hub["revision"], gguf_hub["local_files_only"]) == ("v1", True)


def test_none_and_several_that_fit_are_said(gguf_hub: dict[str, Any]):
    with pytest.raises(NotFoundError, match=r"^org/name has no GGUF file Q3_K_M: look at its files"):
        resolve_gguf("org/name:Q3_K_M")
    with pytest.raises(
        UsageError, match=r"several GGUF files Q6_K: name one of a-Q6_K\.gguf, b-Q6_K\.gguf as org/name:"
    ):
        resolve_gguf("org/name:Q6_K")


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
