"""Where convert and quantize write: nothing is lost, no typo makes a folder, and what cannot be is said before work."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llamita.files.gguf import GgufFile
from tests.unit.cli.conftest import Run


@pytest.fixture
def source(run: Run) -> bytes:
    """x.gguf, of plain numbers, and its bytes."""
    assert run("convert", "-o", "x.gguf", "-q").code == 0
    return Path("x.gguf").read_bytes()


def named(kind: str) -> str:
    """Another name for x.gguf."""
    if kind == "the same":
        return "x.gguf"
    if kind == "a longer path":
        return f"../{Path.cwd().name}/./x.gguf"
    link: Callable[[str, str], None] = os.symlink if kind == "a symbolic link" else os.link
    link("x.gguf", "y.gguf")
    return "y.gguf"


@pytest.mark.parametrize("kind", ["the same", "a longer path", "a symbolic link", "a hard link"])
@pytest.mark.parametrize("verb", [["convert", "--to", "q4_0"], ["quantize", "--to", "q4_0"]])
def test_the_source_is_not_written_over(kind: str, verb: list[str], source: bytes, run: Run) -> None:
    output = named(kind)
    outcome = run(verb[0], "x.gguf", "-o", output, *verb[1:])
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{Path(output)} is the model that is read: choose another name, or replace it with --force" in outcome.err
    assert Path("x.gguf").read_bytes() == source


def test_force_replaces_it(source: bytes, run: Run) -> None:
    assert run("quantize", "x.gguf", "-o", "x.gguf", "--to", "q4_0", "--force", "-q") == (0, "", "")
    assert GgufFile(Path("x.gguf")).entries["blk.1.attn_q.weight"].storage == "q4_0"


def test_a_bare_convert_leaves_what_is_there(run: Run, monkeypatch: pytest.MonkeyPatch, small_path: Path) -> None:
    Path(f"{small_path.name}.gguf").write_text("mine", encoding="utf-8")
    outcome = run("convert", str(small_path))
    assert outcome.code == 2
    assert "is there already" in outcome.err
    assert Path(f"{small_path.name}.gguf").read_text(encoding="utf-8") == "mine"
    assert run("convert", str(small_path), "--force", "-q").code == 0


def test_a_folder_that_holds_a_model(source: bytes, run: Run) -> None:
    assert run("convert", "x.gguf", "folder", "-q").code == 0
    before = {path.name: path.read_bytes() for path in Path("folder").iterdir()}
    for words in (["folder", "folder"], ["folder", "./folder/", "--to", "f16"]):
        assert "folder is the model that is read" in run("convert", *words).err
    assert "folder holds a model already" in run("convert", "x.gguf", "folder").err
    assert {path.name: path.read_bytes() for path in Path("folder").iterdir()} == before
    (Path("folder") / "special_tokens_map.json").write_text('{"bos_token": "a"}', encoding="utf-8")
    assert run("convert", "x.gguf", "folder", "--force", "-q").code == 0
    assert {path.name for path in Path("folder").iterdir()} == set(before)  # nothing of another tokenizer is left


def test_what_else_is_in_a_folder_is_not_counted(source: bytes, run: Run) -> None:
    Path("large.bin").write_bytes(bytes(50_000_000))
    Path("dangling").symlink_to("nowhere")
    outcome = run("convert", "x.gguf", ".")
    assert outcome.code == 0
    assert outcome.err.startswith("wrote ., 8")
    assert outcome.err.endswith(" kB\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["convert", "-o", "-"], 2, "the output is '-': name a file"),
        (["convert", "-o", ""], 2, "the output is '': name a file"),
        (["quantize", "-o", "-"], 2, "the output is '-': name a file"),
        (["quantize", "-o", ""], 2, "the output is '': name a file"),
        (["convert", "-o", "no/x.gguf"], 3, "cannot write no/x.gguf: there is no folder no, make it"),
        (["convert", "-o", "no/such/folder"], 3, "there is no folder no/such, make it"),
        (["quantize", "-o", "no/x.gguf"], 3, "cannot write no/x.gguf: there is no folder no, make it"),
        (["convert", "-o", "a-file/x.gguf"], 3, "there is no folder a-file"),
        (["convert", "-o", "a-folder.gguf"], 2, "a-folder.gguf is a folder, and a name that ends in .gguf"),
        (["quantize", "-o", "model"], 2, "the output model does not end in .gguf: name it "),
        (["quantize", "cria", "out", "q8_0"], 2, "the output out does not end in .gguf"),
        (["quantize", "cria", "q8_0", "out.gguf"], 2, "the file comes before the format: llamita quantize cria out.gg"),
        (["quantize", "cria", "out.gguf", "q9"], 2, "there is no recipe 'q9' for quantizing: use one of q8_0"),
        (["quantize", "--quantize", "q8_0"], 2, "there is no option --quantize: write --to"),
        (["quantize", "--kernels", "off"], 2, "quantize does nothing with --kernels"),
        (["quantize", "--tokens", "-1"], 2, "--tokens is -1: give the number of tokens"),
        (["quantize", "--text", "."], 2, ". is a folder: give a text file"),
        (["convert", "--device", "cuda"], 2, "convert does nothing with --device"),
        (["convert", "--attn", "eager"], 2, "convert does nothing with --attn"),
        (["convert", "--kernels", "off"], 2, "convert does nothing with --kernels"),
        (["convert", "--compile", "full"], 2, "convert does nothing with --compile"),
        (["convert", "--deterministic"], 2, "convert does nothing with --deterministic"),
        (["convert", "--to", "f16", "--dtype", "f32"], 2, "--dtype does nothing in convert: --to says the format"),
        (["convert", "-m", "."], 3, "config.json"),
        (["generate", "a", "-m", "unnamed"], 2, "unnamed is a GGUF file without its ending: rename it unnamed.gguf"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_and_nothing_is_made(words: list[str], code: int, says: str, run: Run) -> None:
    Path("a-file").touch()
    for folder in ("a-folder.gguf", "a-folder"):
        Path(folder).mkdir()
    for file in ("model.gguf", "a-folder/m.gguf", "unnamed"):
        Path(file).write_bytes(b"GGUF")
    before = sorted(Path.cwd().rglob("*"))
    outcome = run(*words)
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before


def test_what_the_environment_sets_for_all_verbs_is_passed_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMITA_KERNELS", "off")
    monkeypatch.setenv("LLAMITA_DEVICE", "cpu")
    assert run("convert", "-o", "x.gguf", "-q").code == 0
