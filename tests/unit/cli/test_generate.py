"""`llamita generate`: where the prompt comes from, what is printed where."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import llamita
from llamita.kernels.cpu.runtime import code_cache
from llamita.llm import LLM
from tests.unit.cli.conftest import Run


@pytest.fixture(scope="module")
def text(small_path: Path) -> str:
    return llamita.load(small_path).generate("abc", max_tokens=9, temperature=0.9, seed=3).text


FLAGS = ("-n", "9", "-t", "0.9", "--seed", "3")


def test_only_the_continuation_is_on_stdout(run: Run, text: str) -> None:
    assert run("generate", "abc", *FLAGS) == (0, text + "\n", "")
    assert run("generate", "-p", "abc", *FLAGS) == (0, text + "\n", "")


def test_piped_text_is_the_prompt_and_the_verb_can_be_left_out(run: Run, text: str) -> None:
    assert run("generate", *FLAGS, stdin="abc\n").out == text + "\n"
    assert run(*FLAGS, stdin="abc").out == text + "\n"
    assert run(stdin="abc\n").code == 0


def test_piped_text_goes_below_a_prompt(run: Run) -> None:
    both = run("generate", "Say it again:", "-n", "1", "--json", stdin="abc\n")
    assert json.loads(both.out)["usage"]["prompt_tokens"] == 1 + len("Say it again:\n\nabc")


def test_json_is_one_object(run: Run, small_path: Path, text: str) -> None:
    told = json.loads(run("generate", "abc", "--json", *FLAGS).out)
    usage = {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}
    assert told == {"text": text, "finish_reason": "length", "usage": usage, "model": str(small_path), "seed": 3}


def test_a_seed_is_chosen_and_told(run: Run) -> None:
    first = json.loads(run("generate", "abc", "-t", "1", "-n", "9", "--json").out)
    again = json.loads(run("generate", "abc", "-t", "1", "-n", "9", "--json", "--seed", str(first["seed"])).out)
    assert first == again


def test_system_makes_it_a_conversation(run: Run) -> None:
    told = json.loads(run("generate", "Hi", "-s", "Be kind.", "-n", "1", "--json").out)
    assert told["usage"]["prompt_tokens"] == 1 + len("system: Be kind.") + 1 + len("user: Hi") + 1 + len("assistant: ")


def test_stop(run: Run, text: str) -> None:
    assert run("generate", "abc", *FLAGS, "--stop", "\0", "--stop", text[4]).out == text[: text.index(text[4])] + "\n"


def test_options_have_twins_in_the_environment(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {"MAX_TOKENS": "9", "TEMPERATURE": "0.9", "SEED": "3", "PROMPT": "abc", "QUIET": "1", "STOP": "never"}
    for name, value in twins.items():
        monkeypatch.setenv(f"LLAMITA_{name}", value)
    assert run("generate").out == text + "\n"
    usage = json.loads(run("generate", "four", "--json", "-n", "2").out)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 2)
    monkeypatch.setenv("LLAMITA_SEED", "three")
    assert run("generate") == (2, "", "llamita: LLAMITA_SEED is 'three': set it to a valid int, or unset it\n")
    monkeypatch.setenv("LLAMITA_SEED", "3")
    monkeypatch.setenv("LLAMITA_OFFLINE", "perhaps")
    assert run("generate").err == "llamita: LLAMITA_OFFLINE is 'perhaps': set it to 1 or 0\n"


def test_no_prompt_at_all_begins_a_story(run: Run) -> None:
    assert json.loads(run("generate", "--json", "-n", "1").out)["usage"]["prompt_tokens"] == 1 + len("Once upon a time")


def test_logprobs_are_of_the_models_own_logits(run: Run, llm: LLM) -> None:
    told = json.loads(run("generate", "abc", *FLAGS, "--top-k", "2", "--json", "--logprobs", "3").out)
    written = llm.generate("abc", max_tokens=9, temperature=0.9, top_k=2, seed=3)
    ids = torch.tensor([written.prompt_token_ids + written.token_ids])
    with torch.no_grad():
        table = llm.model(ids).logits[0, len(written.prompt_token_ids) - 1 :].log_softmax(-1)
    assert len(told["logprobs"]) == 9
    for row, token_id, entry in zip(table[:-1], written.token_ids, told["logprobs"], strict=True):
        assert entry["logprob"] == pytest.approx(float(row[token_id]), abs=1e-4)
        best = [candidate["logprob"] for candidate in entry["top"]]
        assert best == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    plain = json.loads(run("generate", "abc", *FLAGS, "--json", "--logprobs", "0").out)["logprobs"]
    assert all(entry["top"] == [] for entry in plain)
    of_prompt = json.loads(run("generate", "abc", *FLAGS, "--json", "--prompt-logprobs", "1").out)["prompt_logprobs"]
    assert [(entry["token"], len(entry["top"])) for entry in of_prompt] == [("a", 1), ("b", 1), ("c", 1)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--logprobs", "2"], "add --json"),
        (["--prompt-logprobs", "2"], "add --json"),
        (["--logprobs", "-2", "--json"], "logprobs is -2"),
        (["--show-probs", "--json"], "take --logprobs with --json"),
        (["--show-probs", "--heal"], "leave one of them out"),
        (["--show-probs", "--draft-model", "cria"], "several tokens at once"),
        (["--regex", "a", "--choice", "a,b"], "--regex and --choice are two forms"),
        (["--regex", "("], "the grammar is refused"),
        (["--choice", "a,"], "none that is empty"),
        (["--json-schema", "{"], "the JSON schema cannot be read"),
        (["--json-schema", "."], "is a folder"),
        (["--repeat-penalty", "0"], "repetition_penalty is 0"),
        (["--min-p", "2"], "min_p is 2"),
    ],
)
def test_options_that_do_not_go_together(run: Run, words: list[str], says: str) -> None:
    outcome = run("generate", "abc", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err


def test_probabilities_are_colours_on_a_terminal_only(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("generate", "abc", *FLAGS, "--show-probs") == (0, text + "\n", "")
    monkeypatch.setattr("llamita.cli.terminal.has_color", lambda stream: True)
    outcome = run("generate", "abc", *FLAGS, "--show-probs", "--stop", text[6])
    shown = text[: text.index(text[6])]
    assert re.sub(r"\033\[[\d;]*m", "", outcome.out) == "".join(c for c in shown if c.isprintable()) + "\n"
    assert len(shown) <= outcome.out.count("\033[38;5;") <= 9  # a piece a token: none holds two characters here
    assert "sure ≥ 90%" in outcome.err


def test_stats_are_told_on_stderr(run: Run, text: str) -> None:
    outcome = run("generate", "abc", *FLAGS, "--stats")
    assert outcome.out == text + "\n"
    prompt, first, written = outcome.err.splitlines()
    assert re.fullmatch(r"prompt: 4 tokens, [\d.]+ tokens/s", prompt)
    assert re.fullmatch(r"first token: after [\d.]+ ms", first)
    assert re.fullmatch(r"written: 9 tokens, [\d.]+ tokens/s after the first", written)
    assert "written: 1 tokens, - tokens/s" in run("generate", "abc", "-n", "1", "--stats", "-q").err


SCHEMA = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false}'


def test_the_answer_has_the_form_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "n.json").write_text(SCHEMA, encoding="utf-8")
    (tmp_path / "n.lark").write_text('start: "n" ("1" | "2")', encoding="utf-8")
    for seed in map(str, range(4)):
        for schema in ("n.json", SCHEMA):
            outcome = run("generate", "abc", "-t", "1", "--seed", seed, "--json-schema", schema)
            assert json.loads(outcome.out)["n"] in (1, 2)
            assert outcome.err == ""
        assert run("generate", "abc", "-t", "1", "--seed", seed, "--grammar", "n.lark").out in ("n1\n", "n2\n")
    assert run("generate", "abc", "--choice", "Yes,No").out in ("Yes\n", "No\n")
    monkeypatch.setenv("LLAMITA_REGEX", "[xy]{3}")
    assert re.fullmatch("[xy]{3}\n", run("generate", "abc").out)


def test_a_form_that_was_cut_short_is_told(run: Run) -> None:
    outcome = run("generate", "abc", "--regex", "x{9}", "-n", "4")
    assert (outcome.code, outcome.out) == (0, "xxxx\n")
    assert "cut at its limit of tokens" in outcome.err
    assert run("generate", "abc", "--regex", "x{9}", "-n", "4", "-q").err == ""


def test_a_file_that_is_not_there_or_no_text(run: Run, tmp_path: Path) -> None:
    outcome = run("generate", "abc", "--grammar", "no.lark")
    assert (outcome.code, outcome.out, outcome.err) == (3, "", "llamita: no.lark does not exist: check the path\n")
    (tmp_path / "bad.json").write_bytes(b"{\xff}")
    outcome = run("generate", "abc", "--json-schema", "bad.json")
    assert (outcome.code, "bad.json is not UTF-8" in outcome.err) == (2, True)


def test_a_draft_model_is_told_of_in_the_stats(run: Run, small_path: Path) -> None:
    plain = run("generate", "abc", "-n", "20", "-t", "0")
    outcome = run("generate", "abc", "-n", "20", "-t", "0", "--stats", "--draft-model", str(small_path))
    assert outcome.out == plain.out
    line = outcome.err.splitlines()[-1]
    pattern = r"drafted: \d+ tokens, \d+ accepted \(\d+%\), [\d.]+ tokens a pass(, at most \d+ drafts a pass)?"
    assert re.fullmatch(pattern, line)
    assert run("generate", "abc", "--draft-model", "no/such").code == 3


def test_penalties_and_min_p_are_handed_on(run: Run, llm: LLM) -> None:
    words = "--min-p 0.2 --repeat-penalty 1.5 --presence-penalty 0.5 --frequency-penalty 0.5"
    told = llm.generate(
        "abc", max_tokens=9, seed=3, temperature=0.9, min_p=0.2, repetition_penalty=1.5, presence_penalty=0.5,
        frequency_penalty=0.5,
    )  # fmt: skip
    assert run("generate", "abc", *FLAGS, *words.split()).out == told.text + "\n"


def test_heal_lets_the_answer_begin_inside_a_word(run: Run, cria_path: Path) -> None:
    outcome = run("generate", "Once upon a ti", "-m", str(cria_path), "-n", "3", "-t", "0", "--heal")
    assert outcome.out.startswith("me")


@pytest.mark.parametrize(
    ("kept", "says"), [((Path("kernels"), 0), "kept for the next time"), ((None, 0), "no home"), ((None, 1), "")]
)
def test_a_first_text_says_what_it_waits_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, kept: tuple[Path | None, int], says: str
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(code_cache, "contents", lambda: kept)
    told = run("generate", "abc", *FLAGS).err
    assert says in told and ("kernels are compiled for this processor" in told) == bool(says)
    assert "kernels" not in run("generate", "abc", *FLAGS, "-q").err
