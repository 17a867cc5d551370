"""llamita verify prints every comparison and fails when a number differs."""

import json
from pathlib import Path

import pytest

from llamita import arithmetic, verify
from llamita.cli import verify as cli
from llamita.cli.main import main
from tests.small import save_small_model
from tests.unit.cli.conftest import Run


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [verify.Case(), verify.Case(cached=True, padding="left")]
    monkeypatch.setattr(verify, "grid", lambda: iter(cases))


@pytest.mark.usefixtures("two_cases")
def test_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("float32 sdpa default GQA pad none uncached") and "gradients 0" in first
    assert "pad left cached" in second and "logits 0" in second
    assert last.startswith("2 cases, 0 differ from transformers")


@pytest.mark.usefixtures("two_cases")
def test_a_difference_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "difference", lambda case: {"logits": 0.25 if case.cached else 0.0})
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 cases, 1 differ from transformers; ")


def test_a_checkpoint(small_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(small_path), "--against", "transformers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[-1] == "8 runs, 0 differ from transformers"


def test_each_instruction_set_has_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    published, levels = arithmetic.combined(arithmetic.expected()), arithmetic.processors()
    found = dict.fromkeys(levels, published)
    monkeypatch.setattr(cli, "_digest_of", found.__getitem__)
    assert main(["verify", "--arithmetic", "--every-instruction-set"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [[level, published] for level in levels]
    assert last == f"{len(levels)} instruction sets, 0 differ from the published digest"
    found[levels[-1]] = "failed: of memory"
    assert main(["verify", "--arithmetic", "--every-instruction-set"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.endswith("differs") for line in lines] == [level == levels[-1] for level in levels]
    assert last.endswith(", 1 differ from the published digest")


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_quick_takes_a_few_in_which_every_value_comes_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_path: Path
) -> None:
    taken: list[verify.Case] = []
    monkeypatch.setattr(verify, "difference", lambda case: taken.append(case) or {"logits": 0.0})
    assert main(["verify", "--quick"]) == 0
    every = list(verify.grid())
    assert len(taken) * 20 < len(every)
    for name in ("dtype", "backend", "rope", "heads", "padding", "cached", "bias"):
        assert {getattr(case, name) for case in taken} == {getattr(case, name) for case in every}
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(taken)} cases, 0 differ")
    assert main(["verify", "-m", str(small_path), "--quick"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs, 0 differ from transformers"


def test_how_long_it_takes_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "difference", lambda case: {"logits": 0.0})
    assert main(["verify"]) == 0
    told = capsys.readouterr()
    assert told.err == "(864 small models, 38 with --quick)\n(about 1 s in all)\n"
    assert main(["verify", "-q"]) == 0
    assert capsys.readouterr() == (told.out.splitlines()[-1] + "\n", "")


def test_a_chain_prints_its_steps_and_fails_where_bits_differ(run: Run, tmp_path: Path, small_path: Path) -> None:
    assert run("convert", str(small_path), "bf16", "--to", "bf16", "-q").code == 0
    assert run("convert", "bf16", "bf16.gguf", "-q").code == 0
    outcome = run("verify", "--chain", "bf16", "bf16.gguf")
    assert outcome == (
        0,
        "ok    store: bf16 -> bf16.gguf: the stored weights computed again: bit-equal\n"
        "      KL 0 nats per token, same most probable token 100.0%, all outputs bit-equal\n"
        "1 step, 0 fail\n",
        "",
    )
    assert run("verify", "--chain", str(small_path), "bf16.gguf").code == 0  # fp32 rounded to the bf16 of the file
    save_small_model(tmp_path / "other", seed=1)
    outcome = run("verify", "--chain", "other", "bf16.gguf", "--quiet")
    assert outcome.code == 1
    assert "FAILS store: other -> bf16.gguf: must be equal and differ: model.embed_tokens.weight and " in outcome.out
    assert ", first at model.embed_tokens: " in outcome.out
    outcome = run("verify", "--chain", "other", "bf16.gguf", "--max-kl", "100", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)[0]["kl"] > 0
    assert run("verify", "--chain", "other", "bf16.gguf", "--max-kl", "1e-9", "-q").code == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--max-kl", "1"), "--max-kl belongs to --chain: give both"),
        (("--chain", "cria", "--arithmetic"), "--chain has models of its own: give nothing else to verify"),
        (("--chain", "cria"), "a chain has at least two models"),
        (("--chain", "cria", "cria", "--max-kl", "nan"), "--max-kl is nan: give a number of nats per token, 0 or more"),
        (("--chain", "cria", "cria", "--max-kl", "-1"), "--max-kl is -1.0: give a number"),
        (("--chain", "cria", "cria", "--text", "/dev/null"), "/dev/null has no text to compare on"),
        (("--chain", "cria", "cria", "--quick"), "--quick does nothing with --chain: leave it out"),
        (("--arithmetic", "--quick"), "--quick does nothing with --arithmetic: leave it out"),
        (("--chain", "cria", "cria", "--text", "nowhere.txt"), "cannot read nowhere.txt"),
    ],
)
def test_wrong_chains_are_refused(run: Run, words: tuple[str, ...], error: str) -> None:
    outcome = run("verify", *words)
    assert outcome.code in (2, 3)
    assert error in outcome.err
