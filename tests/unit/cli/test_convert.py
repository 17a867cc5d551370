"""`llamita convert`, and every verb on a GGUF file."""

import json
from pathlib import Path

import pytest
import torch

import llamita
from llamita.checkpoint.convert import convert
from llamita.checkpoint.load import load_pretrained
from llamita.errors import NotFoundError, UsageError
from llamita.files.gguf import GgufFile
from llamita.llm import LLM
from llamita.tokenizer.load import load_tokenizer
from tests.unit.cli.conftest import FLAGS, Run

PROMPT = "Once upon a time"


def test_there_and_back(run: Run, small_path: Path, llm: LLM) -> None:
    outcome = run("convert", str(small_path), "small.gguf")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("wrote small.gguf, 8")
    outcome = run("convert", "small.gguf", "folder")
    assert (outcome.code, outcome.out) == (0, "")
    expected = llm.generate(PROMPT, max_tokens=12, temperature=0).text
    for name in ("small.gguf", "folder"):
        assert llamita.load(name).generate(PROMPT, max_tokens=12, temperature=0).text == expected
    before, after = load_tokenizer(small_path), load_tokenizer(Path("folder"))
    for text in ("", "a b  c\n", "<|eot_id|> like", "日本"):
        assert after.encode(text) == before.encode(text)
        assert after.encode(text, parse_special=True) == before.encode(text, parse_special=True)
    assert after.chat_template == before.chat_template
    assert set(after.eos_token_ids) == set(before.eos_token_ids)
    assert after.pad_token_id == before.pad_token_id


def test_without_arguments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMITA_MODEL")
    assert run("convert", "-q") == (0, "", "")
    file = GgufFile(Path("cria.gguf"))
    assert file.entries["blk.0.attn_q.weight"].storage == "bf16"
    assert run("convert", "cria.gguf", "-q") == (0, "", "")
    assert Path("cria/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "storage"), [(["--to", "q8_0"], "q8_0"), (["--quantize", "q4_0"], "q4_0"), (["--dtype", "f16"], "f16")]
)
def test_the_numbers(words: list[str], storage: str, run: Run) -> None:
    assert run("convert", "-o", "x.gguf", *words).code == 0
    assert GgufFile(Path("x.gguf")).entries["blk.1.ffn_up.weight"].storage == storage


def test_blocks_become_plain_numbers_in_a_folder(run: Run) -> None:
    assert run("convert", "-o", "x.gguf", "--to", "q8_0").code == 0
    assert run("convert", "x.gguf", "folder").code == 0
    assert run("convert", "x.gguf", "half", "--to", "f16").code == 0
    whole, half = load_pretrained("folder").model, load_pretrained("half").model
    blocks = load_pretrained("x.gguf", dtype="float32").model
    assert (whole.dtype, half.dtype) == (torch.float32, torch.float16)
    assert torch.equal(whole.lm_head.weight, blocks.lm_head.weight)
    assert torch.equal(half.lm_head.weight, blocks.lm_head.weight.half())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "x.gguf", "--to", "q9"], 2, "no GGUF file has the format 'q9'"),
        (["-o", "folder", "--to", "q8_0"], 2, "safetensors cannot hold q8_0"),
        (["-o", "a-file"], 2, "a-file is a file"),
        (["no.gguf", "folder"], 3, "no.gguf: it does not exist"),
        (["bad.gguf", "folder"], 1, "does not begin as a GGUF file does"),
    ],
)
def test_what_cannot_be(words: list[str], code: int, message: str, run: Run) -> None:
    Path("a-file").touch()
    Path("bad.gguf").write_bytes(b"PK" + bytes(100))
    outcome = run("convert", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_every_verb_takes_a_gguf_file(run: Run, small_path: Path) -> None:
    assert run("convert", "-o", "x.gguf").code == 0
    expected = run("generate", PROMPT, *FLAGS)
    assert expected.code == 0
    assert run("generate", PROMPT, "--model", "x.gguf", *FLAGS).out == expected.out
    assert run("chat", "-m", "x.gguf", *FLAGS, stdin="Hello\n").code == 0
    card, other = (json.loads(run("show", name, "--json").out) for name in ("x.gguf", str(small_path)))
    assert card["weights"]["dtype"] == "f32"
    assert card["weights"]["missing"] == card["weights"]["misshapen"] == []
    for part in ("shape", "positions", "parameters", "cache"):
        assert card[part] == other[part]
    assert "0 differ" in run("verify", "x.gguf").out


def test_show_names_the_storages(run: Run) -> None:
    assert run("convert", "-o", "x.gguf", "--to", "q4_0").code == 0
    assert "q4_0, f32, q8_0, " in run("show", "x.gguf").out  # rows of 176 fill no block, the head is q8_0


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    from llamita.checkpoint.gguf_save import save_gguf

    model = load_pretrained().model
    path = save_gguf(model, None, tmp_path / "x.gguf")
    with pytest.raises(NotFoundError, match="without a tokenizer"):
        load_pretrained(path)


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="give a folder"):
        convert(None, tmp_path / "x")
