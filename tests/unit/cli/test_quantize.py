"""llamita quantize: what it prints, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest

from llamita.checkpoint.load import load_pretrained
from llamita.cli.main import main
from llamita.files.gguf import GgufFile
from llamita.quant.report import quantize_and_count
from tests.unit.cli.conftest import Run


def test_a_table_of_formats(run: Run) -> None:
    outcome = run("quantize", "--to", "q8_0,q4_0,int8", "--tokens", "500")
    assert outcome.code == 0
    assert outcome.err == ""
    header, before, *rows = outcome.out.splitlines()
    assert header.split() == ["format", "size", "share", "perplexity", "change", "weights"]
    assert before.startswith("original")
    assert [row.split()[0] for row in rows] == ["q8_0", "q4_0", "int8"]
    # 64 columns; 176 are no multiple of 32: the 4 down projections stay. The head's 6 bits need 256 columns.
    assert rows[0].endswith("25 q8_0, 4 unchanged")
    assert rows[1].endswith("24 q4_0, 1 q8_0, 4 unchanged")


def test_a_report_lists_every_weight(run: Run) -> None:
    lines = run("quantize", "--to", "q4_0", "--report", "--tokens", "500").out.splitlines()
    weights = [line.split() for line in lines if " x " in line]
    assert len(weights) == 1 + 4 * 7
    assert weights[0][:2] == ["embed_tokens,", "lm_head"]
    assert all(0 < float(row[-2].rstrip("%")) < 11 for row in weights if "unchanged" not in row)


def test_figures_as_json(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One two three.\fFour.", encoding="utf-8")
    (facts,) = json.loads(run("quantize", "--to", "Q8_0", "--json", "--text", str(text)).out)
    assert facts["format"] == "q8_0"
    assert facts["bytes_after"] < facts["bytes_before"]
    assert abs(facts["perplexity_change"] - (facts["perplexity_after"] / facts["perplexity_before"] - 1)) < 1e-9
    weights = {row["name"]: row for row in facts["weights"]}
    row = weights["model.layers.3.self_attn.k_proj"]
    assert (row["shape"], row["format"], row["bytes"]) == ([32, 64], "q8_0", 32 * 2 * 34)
    assert 0 < row["weight_error"] < 0.01
    assert 0 < row["output_error"] < 0.02


def test_measuring_can_be_cut_short_or_left_out(run: Run) -> None:
    (short,) = json.loads(run("quantize", "--json", "--tokens", "50").out)
    (long,) = json.loads(run("quantize", "--json", "--tokens", "80").out)
    (none,) = json.loads(run("quantize", "--json", "--tokens", "0").out)
    assert short["perplexity_before"] != long["perplexity_before"]
    assert none["perplexity_before"] is none["perplexity_change"] is None
    assert none["weights"][0]["weight_error"] > 0
    assert none["weights"][0]["output_error"] is None


def test_a_file_is_written_and_read(run: Run, tmp_path: Path) -> None:
    outcome = run("quantize", "--to", "q8_0", "-o", "small.gguf", "-q", "--tokens", "500")
    assert (outcome.code, outcome.out) == (0, "")
    assert (tmp_path / "small.gguf").stat().st_size > 200_000


def test_mistakes_are_said_in_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    cases = [
        (["--to", "q9"], "there is no recipe 'q9' for quantizing: "),
        (["--to", "q8_0,q4_0", "-o", "x.gguf"], "-o writes one model, --to names 2: choose one"),
        (["--to", "int8", "-o", "x.gguf"], "no GGUF file has the format 'int8': known are "),
        (["--text", "nothing.txt"], "there is no text nothing.txt: check the path"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8 text: convert it first"),
        (["-m", "nothing"], "nothing"),
    ]
    for words, message in cases:
        outcome = run("quantize", *words)
        assert outcome.code in (2, 3)
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
        assert outcome.out == ""
    assert not list(tmp_path.glob("*.gguf"))


def test_it_runs_on_cria_unless_a_model_is_named(capsys) -> None:
    assert main(["quantize", "-q", "--tokens", "500"]) == 0
    assert capsys.readouterr().out == ""


def test_a_file_is_written_without_measuring_unless_the_cost_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("measured")

    with monkeypatch.context() as patched:
        patched.setattr("llamita.quant.report.perplexity", refuse)
        patched.setattr("llamita.quant.report.layer_inputs", lambda model, documents: refuse() if documents else {})
        outcome = run("quantize", "--to", "q8_0", "-o", "a.gguf")
        assert outcome.code == 0
        assert outcome.out.splitlines()[0].split() == ["format", "size", "share", "weights"]
        assert run("quantize", "-o", "b.gguf", "--to", "q8_0", "--json").code == 0
    for flag, name in ((["--tokens", "40"], "c"), (["--text", "text"], "d")):
        Path("text").write_text("Once upon a time.", encoding="utf-8")
        assert "perplexity" in run("quantize", "--to", "q8_0", "-o", f"{name}.gguf", *flag).out


def test_the_way_of_llama_quantize_is_understood(run: Run, small_path: Path) -> None:
    assert run("quantize", str(small_path), "a.gguf", "Q8_0", "-q") == (0, "", "")
    assert run("quantize", str(small_path), "-o", "b.gguf", "--to", "q8_0", "-q") == (0, "", "")
    assert Path("a.gguf").read_bytes()[:4] == b"GGUF"
    assert GgufFile(Path("a.gguf")).entries == GgufFile(Path("b.gguf")).entries
    outcome = run("quantize", str(small_path), "q8_0", "--tokens", "0")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].startswith("q8_0")


def test_every_step_is_reported(small_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    model = load_pretrained(small_path).model
    quantize_and_count(model, "q8_0", [[1, 2, 3], [4, 5]], lambda *step: heard.append(step))
    assert [step for step in heard if step[0] == "quantizing"] == [("quantizing", i + 1, 25) for i in range(25)]
    assert [step[1:] for step in heard if step[0].startswith("measuring")] == [(0, 2), (1, 2)] * 2
