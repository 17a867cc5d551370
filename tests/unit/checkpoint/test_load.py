"""Names of models: folders, GGUF files, and what of them is on the hub."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import llamita
from llamita import LlamaForCausalLM, LlamaModel
from llamita.checkpoint.gguf_save import save_gguf
from llamita.checkpoint.load import find
from llamita.errors import NotFoundError, UsageError


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder into which a hub of one repository, which is empty yet, downloads."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, **options: str(folder))
    return folder


def test_a_quantization_is_loaded_from_the_hub_as_llama_cpp_names_it(small_path: Path, downloaded: Path) -> None:
    small = llamita.load(small_path, kernels="off")
    save_gguf(small.model, small.tokenizer, downloaded / "small-Q8_0.gguf", "q8_0")
    for name in ("org/name:Q8_0", "org/name:small-Q8_0.gguf"):
        assert find(name) == downloaded / "small-Q8_0.gguf"
    llm = llamita.load("org/name:q8_0", kernels="off")
    assert llm.name == "org/name:q8_0"
    assert llm.generate("Once", max_tokens=2, temperature=0).text
    with pytest.raises(NotFoundError, match="no GGUF file Q4_K_M"):
        llamita.load("org/name:Q4_K_M")


def test_a_file_on_the_disk_goes_before_the_hub(downloaded: Path) -> None:
    folder = Path("org")
    folder.mkdir()
    (folder / "name:x.gguf").touch()
    assert find("org/name:x.gguf") == Path("org/name:x.gguf")


def test_a_repository_of_gguf_files_alone_says_how_to_name_one(downloaded: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^org/name has no config\.json .* name one, such as org/name:Q4_K_M$"):
        llamita.load("org/name")
    (downloaded / "config.json").touch()
    assert find("org/name") == downloaded
    (Path("org") / "name").mkdir(parents=True)
    assert find("org/name") == Path("org/name")  # a folder of one's own: its reader says what is missing


@pytest.mark.parametrize("kind", [LlamaForCausalLM, LlamaModel])
def test_from_pretrained_says_what_reads_a_gguf_file(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(
        UsageError, match=r"is a GGUF file, not a folder: llamita\.load\(.*model\.gguf'\)\.model reads it$"
    ):
        kind.from_pretrained(path)
    with pytest.raises(UsageError, match=r"^org/name:Q4_K_M names a GGUF file"):
        kind.from_pretrained("org/name:Q4_K_M")
