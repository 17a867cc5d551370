"""A reader who leaves a pipe ends a command without a word and with 0."""

import io
import os
import sys
from pathlib import Path

import pytest

from llamita import verify
from llamita.cli.main import VERBS, main
from tests.architecture.source import ROOT
from tests.unit.cli.conftest import Run
from tests.zygote import Zygote, result


class Left(io.StringIO):
    """A pipe whose reader has left, of text and of bytes."""

    @property
    def buffer(self) -> "Left":
        """The same for bytes."""
        return self

    def write(self, text: str, /) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


COMMANDS: dict[str, tuple[list[str], str | None]] = {
    "help": (["--help"], None),
    "version": (["--version"], None),
    "help of a verb": (["generate", "--help"], None),
    "generate": (["generate", "a", "-n", "2"], None),
    "generate --json": (["generate", "a", "-n", "2", "--json"], None),
    "chat": (["chat", "-n", "2"], "Hi\n"),
    "show": (["show"], None),
    "show --json": (["show", "--json"], None),
    "quantize": (["quantize", "--tokens", "0"], None),
    "verify": (["verify"], None),
    "bench": (["bench", "roofline", "--shape", "tiny", "--length", "4", "--repeats", "1"], None),
    "tokenize": (["tokenize", "ab"], None),
    "convert": (["convert", "--to", "q8_0", "-o", "x.gguf"], None),
    "batch": (["batch", "--keep-going", "-q"], "{}\n" * 3),
    **{verb: ([verb, "--help"], None) for verb in ("replay", "train", "finetune")},  # the rest would take seconds
    "eval": (["eval", "--tasks", "facts", "--limit", "1", "--kernels", "off"], None),
    "a verb as a word": (["help", "serve"], None),
}


def test_every_verb_is_here() -> None:
    assert VERBS.keys() - {words[0] for words, _ in COMMANDS.values()} == {"serve"}  # which says all on stderr


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_who_leaves(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words, piped = COMMANDS[name]
    monkeypatch.setattr(verify, "grid", lambda: iter([verify.Case()]))
    monkeypatch.setattr("llamita.bench.roofline.measure", lambda **_: [])
    patched = Left()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", patched)
        patch.setattr(sys, "stdin", None if piped is None else io.TextIOWrapper(io.BytesIO(piped.encode())))
        assert main(words) == 0


# What `show` is to do without: torch's compiler, which takes as long to import as torch itself.
SHOW = """
import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
from llamita.cli.main import main
code = main(["show", {folder!r}])
sys.exit("torch._dynamo was imported" if "torch._dynamo" in sys.modules else code)
"""


def test_show_into_a_closed_pipe_loads_no_compiler(small_path: Path, zygote: Zygote) -> None:
    script = SHOW.format(folder=str(small_path))
    assert result(zygote.start(script, os.environ | {"PYTHONPATH": str(ROOT)})) == ""
