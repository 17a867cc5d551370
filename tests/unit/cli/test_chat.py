"""`llamita chat`: turns, commands, interruptions, and a context that is too small for them all."""

import builtins
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.cli import commands, keyboard, terminal
from llamita.cli.conversation import Conversation
from llamita.llm import LLM
from tests.unit.cli.conftest import FLAGS, Outcome, Run


def answers(llm: LLM, *texts: str, system: str | None = None) -> list[str]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for text in texts:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": llm.chat(messages, max_tokens=8, temperature=0.0).text})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_every_piped_line_is_a_turn(run: Run, llm: LLM) -> None:
    outcome = run("chat", *FLAGS, stdin="Hello\n\nAnd you?\n")
    assert outcome.out == "".join(answer + "\n" for answer in answers(llm, "Hello", "And you?"))
    assert outcome.code == 0


def test_typed_lines_and_commands(type_in: Callable[..., Outcome], llm: LLM) -> None:
    outcome = type_in("Hi", "", "/reset", "Hi", "/hlp", "/help", "/system Be kind.", "Hi", "/bye", "never")
    once, again = answers(llm, "Hi"), answers(llm, "Hi", system="Be kind.")
    assert outcome.out == "".join(text + "\n" for text in [*once, *once, *again])
    assert "did you mean /help?" in outcome.err
    assert "system: Be kind." in outcome.err
    assert all(name in outcome.err for name in commands.COMMANDS)


def test_a_process_without_stdin_answers_the_message(run: Run) -> None:
    outcome = run("chat", "Hi", *FLAGS, "-q")
    assert outcome[::2] == (0, "")  # no word on its having been cut, and no prompt: nobody can type
    assert "/help" not in run("chat", "Hi", *FLAGS).err


def test_the_second_ctrl_c_leaves(type_in: Callable[..., Outcome]) -> None:
    assert type_in(KeyboardInterrupt, "Hi", KeyboardInterrupt).code == 0  # then Ctrl-D
    assert type_in(KeyboardInterrupt, KeyboardInterrupt).code == 130


def test_ctrl_c_stops_only_the_answer(type_in: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([1, 0, 0, 0, 0])
    show = terminal.show

    def interrupted(text: str, *stream: Any) -> None:
        if next(calls, 0):
            raise KeyboardInterrupt
        show(text, *stream)

    monkeypatch.setattr(terminal, "show", interrupted)
    outcome = type_in("Hi", "Hello")
    assert outcome.code == 0
    assert "(stopped)" in outcome.err
    assert outcome.out


def test_an_error_is_of_its_turn_only(type_in: Callable[..., Outcome], llm: LLM) -> None:
    outcome = type_in("x" * 200, "Hi")
    assert "reads at most 128" in outcome.err
    assert outcome.out == answers(llm, "Hi")[0] + "\n"


def test_the_oldest_turns_are_left_out_and_it_is_said(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Conversation(llm, options={"max_tokens": 4, "temperature": 0.0}, seed=0, system="Be brief.")
    for text in ("first", "second", "third", "fourth"):
        list(chat.answer(text))
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert [turn["content"] for turn in chat.turns if turn["role"] == "user"] == ["third", "fourth"]
    assert "left out" in capsys.readouterr().err


def test_a_turn_without_an_answer_is_taken_back(llm: LLM) -> None:
    chat = Conversation(llm, options={}, seed=0)
    with pytest.raises(llamita.LlamitaError):
        list(chat.answer("x" * 200))
    assert chat.turns == []


def test_a_model_that_was_not_made_for_chats(run: Run, tmp_path: Path) -> None:
    from tests.small import save_small_model

    save_small_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|begin_of_text|>"}', encoding="utf-8")
    outcome = run("chat", "-m", str(tmp_path), stdin="Hi\n")
    assert (outcome.code, outcome.out) == (6, "")
    assert "use llamita generate" in outcome.err


def test_a_model_without_a_template_that_knows_a_format(run: Run, tmp_path: Path) -> None:
    from tests.small import save_small_model

    save_small_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    known = path.read_text(encoding="utf-8").replace("<|begin_of_text|>", "<s>").replace("<|end_of_text|>", "</s>")
    path.write_text(known, encoding="utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    outcome = run("chat", "-m", str(tmp_path), *FLAGS, stdin="Hi\n")
    assert (outcome.code, "taking the format of Llama 2" in outcome.err) == (0, True)
    assert outcome.out == llamita.load(tmp_path).generate("[INST] Hi [/INST]", max_tokens=8).text + "\n"
    assert run("chat", "-m", str(tmp_path), *FLAGS, "-q", stdin="Hi\n").out == outcome.out


def test_the_prompt_does_not_go_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(builtins, "input", lambda prompt="": prompt)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    typing = keyboard.Keyboard()
    assert typing.line("> ") == ""
    assert capsys.readouterr() == ("", "> ")
    screen: Any = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert "\033[1;32m" in typing.line("> ")
    monkeypatch.setenv("NO_COLOR", "1")
    assert typing.line("> ") == "> "
