"""`llamita finetune`: the example, the scores, and the line that uses the result."""

import json
import re
from pathlib import Path

import pytest

from llamita.cli.finetune import METHODS
from llamita.data import practice
from tests.unit.cli.conftest import Run

SHORT = ("--steps", "2", "--length", "128", "--batch-tokens", "256", "--precision", "fp32", "--threads", "1")


@pytest.fixture(autouse=True)
def data(run: Run, tmp_path: Path) -> None:
    """Examples and pairs, beside the small model that LLAMITA_MODEL names."""
    sums = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(40)]
    pairs = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "x"} for n in range(40)]
    for name, lines in (("sums", sums), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def test_shows_an_example_both_scores_and_how_to_use_the_adapter(run: Run, small_path: Path) -> None:
    outcome = run("finetune", "sums.jsonl", "--targets", "q_proj,v_proj", *SHORT)
    assert outcome.code == 0, outcome.err
    assert re.search(r"an example, \[learned\]:\n<\|begin_of_text\|>\d+\+1=\[\d+<\|end_of_text\|>\]\n", outcome.err)
    assert re.search(r"before: \d of 2 held-out answers right, held-out loss \d", outcome.err)
    before, after, use = outcome.out.splitlines()
    assert before.startswith("before: 0 of 2 held-out answers right")
    assert after.startswith("after:  ")
    found = re.fullmatch(rf'llamita generate -m {small_path} --adapter finetuned "(\d+\+1=)"', use)
    assert found
    assert run("generate", "-m", str(small_path), "--adapter", "finetuned", found[1], "-n", "3").code == 0
    assert json.loads(Path("finetuned/adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]
    assert run("finetune", "sums.jsonl", *SHORT, "-q") == (0, "finetuned-2\n", "")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_every_method_runs_on_the_built_in_data_of_its_task(
    run: Run, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(practice, "COUNT", 60)
    monkeypatch.setattr(practice, "LENGTHS", (3,))  # a pair of single bytes then fits into a row
    shorter = ("--max-tokens", "8") if method == "grpo" else ()  # the answers that it writes
    outcome = run("finetune", "--method", method, *SHORT, "--micro-rows", "2", *shorter)
    assert outcome.code == 0, outcome.err
    assert ("ends swapped:[" in outcome.err) == (method != "grpo")  # whose prompts alone are read: nothing is learned
    assert outcome.out.count("held-out reward" if method == "grpo" else "held-out loss") == 2
    assert ("accuracy" in outcome.out) == (method in ("dpo", "reward"))


def test_a_run_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("finetune", "pairs.jsonl", "--method", "dpo", "--loss", "ipo", *SHORT, "-o", "out").code == 0
    outcome = run("finetune", "--resume", "-o", "out", "--steps", "3")
    assert outcome.code == 0, outcome.err
    assert "from step 2 for 3 steps" in outcome.err
    changed = run("finetune", "--resume", "-o", "out", "--loss", "orpo")
    assert "loss of the run in out is 'ipo' and cannot become 'orpo'" in changed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "ia3"), "--method is 'ia3': use one of lora, dora, qlora, full, dpo, reward"),
        (("built-in:tax",), "there is no data built-in:tax: use one of built-in:docstrings"),
        (("sums.jsonl", "--targets", "k_prj"), "no module is named 'k_prj'"),
        (("sums.jsonl", "--length", "512"), "reads at most 128 tokens: lower --length"),
        (("sums.jsonl", "--method", "dpo"), "is no pair: give the fields prompt, chosen and rejected"),
        (("sums.jsonl", "--method", "reward", "--rank", "0"), "rank is 0: it must be from 1"),
        (("sums.jsonl", "--method", "reward", "--rank", "3"), "--rank does nothing without --method lora"),
        (("sums.jsonl", "--base-format", "q4_0"), "--base-format does nothing without --method qlora"),
        (("empty.jsonl",), "has no text to train on"),
        (("same.jsonl", "--method", "dpo"), "same.jsonl:1 has the same text as chosen and as rejected"),
        (("long.jsonl",), "long.jsonl:1 has 302 tokens, a row 128: shorten it"),
        (("bare.jsonl", "--task", "sft"), "bare.jsonl:1 is a prompt: give a text, prompt and completion"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_no_folder(
    run: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    lines = {
        "same": {"prompt": "a", "chosen": "b", "rejected": "b"},
        "long": {"prompt": "a" * 300, "completion": "b"},
        "bare": {"prompt": "a", "answer": "b"},
    }
    for name, fields in lines.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(fields), encoding="utf-8")
    outcome = run("finetune", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(path.is_dir() for path in tmp_path.iterdir())
