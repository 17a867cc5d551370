"""`llamita generate`: where the prompt comes from, what is printed where."""

import json
from pathlib import Path

import pytest

import llamita
from tests.unit.cli.conftest import Run


@pytest.fixture(scope="module")
def text(small_path: Path) -> str:
    return llamita.load(small_path).generate("abc", max_tokens=9, temperature=0.9, seed=3).text


FLAGS = ("-n", "9", "-t", "0.9", "--seed", "3")


def test_only_the_continuation_is_on_stdout(run: Run, text: str) -> None:
    assert run("generate", "abc", *FLAGS) == (0, text, "")
    assert run("generate", "-p", "abc", *FLAGS) == (0, text, "")


def test_piped_text_is_the_prompt_and_the_verb_can_be_left_out(run: Run, text: str) -> None:
    assert run("generate", *FLAGS, stdin="abc\n").out == text
    assert run(*FLAGS, stdin="abc").out == text
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
    assert run("generate", "abc", *FLAGS, "--stop", "\0", "--stop", text[4]).out == text[: text.index(text[4])]


def test_options_have_twins_in_the_environment(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {"MAX_TOKENS": "9", "TEMPERATURE": "0.9", "SEED": "3", "PROMPT": "abc", "QUIET": "1", "STOP": "never"}
    for name, value in twins.items():
        monkeypatch.setenv(f"LLAMITA_{name}", value)
    assert run("generate").out == text
    usage = json.loads(run("generate", "four", "--json", "-n", "2").out)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 2)
    monkeypatch.setenv("LLAMITA_SEED", "three")
    assert run("generate") == (2, "", "llamita: LLAMITA_SEED is 'three': set it to a valid int, or unset it\n")
    monkeypatch.setenv("LLAMITA_SEED", "3")
    monkeypatch.setenv("LLAMITA_OFFLINE", "perhaps")
    assert run("generate").err == "llamita: LLAMITA_OFFLINE is 'perhaps': set it to 1 or 0\n"


def test_no_prompt_at_all_begins_a_story(run: Run) -> None:
    assert json.loads(run("generate", "--json", "-n", "1").out)["usage"]["prompt_tokens"] == 1 + len("Once upon a time")
