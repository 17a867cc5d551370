"""The commands of `llamita chat`: settings, second thoughts, tokens, files."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamita.cli import commands, tokens, transcript
from llamita.cli.conversation import Conversation
from llamita.errors import BrokenFileError, LlamitaError, NotFoundError, UsageError
from llamita.llm import LLM
from tests.unit.cli.conftest import FLAGS, Run
from tests.unit.cli.test_chat import answers


@pytest.fixture
def session(llm: LLM) -> commands.Session:
    return commands.Session(Conversation(llm, options={"max_tokens": 8, "temperature": 0.0}, seed=5))


@pytest.fixture
def read(llm: LLM) -> Iterator[list[int]]:
    """How many tokens each pass of the model reads."""
    counts: list[int] = []
    embed = llm.model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda module, inputs, output: counts.append(inputs[0].shape[1]))
    yield counts
    hook.remove()


def ask(session: commands.Session, text: str) -> str:
    list(session.chat.answer(text))
    return session.chat.turns[-1]["content"]


def test_commands_can_be_piped_in(run: Run, llm: LLM) -> None:
    outcome = run("chat", *FLAGS, stdin="Hi\n/undo\n/system Be kind.\nHi\n/bye\nnever\n")
    assert outcome.code == 0
    assert outcome.out == answers(llm, "Hi")[0] + "\n" + answers(llm, "Hi", system="Be kind.")[0] + "\n"
    assert "(taken back: Hi)" in outcome.err


def test_piped_messages_of_several_lines(run: Run, llm: LLM) -> None:
    outcome = run("chat", *FLAGS, stdin='"""a\n  /b\n"""\nc \\\nd\n')
    assert outcome.out == "".join(text + "\n" for text in answers(llm, "a\n  /b", "c \nd"))


def test_a_wrong_piped_command_is_an_error(run: Run) -> None:
    outcome = run("chat", *FLAGS, stdin="/retri\nHi\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert "there is no command /retri: did you mean /retry?" in outcome.err


def test_retry_reads_one_token_and_writes_with_the_next_seed(session: commands.Session, read: list[int]) -> None:
    first = ask(session, "Hi")
    session.chat.options["temperature"] = 1.5
    read.clear()
    list(session.chat.retry())
    assert read[0] == 1
    assert session.chat.seed == 7
    assert [turn["role"] for turn in session.chat.turns] == ["user", "assistant"]
    assert session.chat.turns[1]["content"] != first


def test_an_edit_reads_from_the_change_on(session: commands.Session, read: list[int], llm: LLM) -> None:
    ask(session, "First")
    ask(session, "And the second one")
    read.clear()
    commands.run_command(session, "/edit And the second two")
    assert read[0] == len("two") + 1 + len("assistant: ")
    assert [turn["content"] for turn in session.chat.turns] == [
        *("First", answers(llm, "First")[0]),
        *("And the second two", answers(llm, "First", "And the second two")[1]),
    ]


def test_undo_leaves_what_was_read_before(session: commands.Session, read: list[int]) -> None:
    first, _ = ask(session, "First"), ask(session, "Second")
    assert session.chat.undo() == "Second"
    assert session.chat.turns[-1]["content"] == first
    read.clear()
    ask(session, "Seldom")
    assert read[0] == len("ldom") + 1 + len("assistant: ")
    session.chat.undo()
    session.chat.undo()
    with pytest.raises(UsageError, match="nothing was said yet"):
        session.chat.undo()


def test_a_retry_without_a_word_keeps_the_old_answer(
    session: commands.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(session, "Hi")
    turns = list(session.chat.turns)
    monkeypatch.setattr(session.chat.llm, "stream_chat", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(session.chat.retry())
    assert session.chat.turns == turns
    assert session.chat.last_answer()[1]


def test_an_answer_without_a_word_is_told(
    session: commands.Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.chat.llm.tokenizer, "eos_token_ids", list(range(260)))
    ask_nothing = session.chat.answer("Hi")
    assert list(ask_nothing) == []
    assert session.chat.turns == []
    assert "no answer" in capsys.readouterr().err


def test_set_shows_and_changes(session: commands.Session, capsys: pytest.CaptureFixture[str]) -> None:
    def said(line: str) -> str:
        commands.run_command(session, line)
        return re.sub(" +", " ", capsys.readouterr().err)

    shown = said("/set")
    assert [line.split()[0] for line in shown.splitlines()] == list(commands.SETTINGS)
    assert "temperature 0.0" in shown
    assert "seed 5" in shown
    assert said("/set temperature 0.5") == "temperature 0.5\n"
    assert said("/set top_k 9") == "top_k 9\n"
    assert said("/set seed 11") == "seed 11\n"
    assert said('/set stop "\\nB"') == 'stop ["\\nB"]\n'
    assert said("/set min_p 0.1") == "min_p 0.1\n"
    assert said("/set repetition_penalty 1.2") == "repetition_penalty 1.2\n"
    assert said("/set presence_penalty default") == "presence_penalty 0\n"
    assert session.chat.options.pop("min_p") == 0.1
    assert session.chat.options.pop("repetition_penalty") == 1.2
    assert session.chat.options == {"max_tokens": 8, "temperature": 0.5, "top_k": 9, "stop": ["\nB"]}
    assert session.chat.seed == 11
    said("/set top_k default")
    assert "most probable token each time" in said("/set temperature default")
    assert said("/set max_tokens default") == "max_tokens to the end of the context\n"
    session.chat.llm.model.generation_config.update(do_sample=True, top_p=0.8)
    try:
        assert said("/set top_p") == "top_p 0.8 (the model's own)\n"
        assert said("/set top_k") == "top_k 0\n"
    finally:
        del session.chat.llm.model.generation_config["do_sample"], session.chat.llm.model.generation_config["top_p"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set temprature 1", "there is no setting temprature: did you mean temperature?"),
        ("/set temperature warm", "temperature is 'warm': give a number, or default"),
        ("/set temperature -1", "temperature is -1.0"),
        ("/set top_p 2", "top_p is 2.0"),
        ("/set min_p 3", "min_p is 3.0"),
        ("/set repetition_penalty 0", "repetition_penalty is 0.0"),
        ("/set top_k 1.5", "top_k is '1.5'"),
        ("/set max_tokens 0", "max_tokens is 0"),
        ("/set seed default", "seed is 'default'"),
        ("/retry", "nothing was said yet"),
        ("/edit x", "nothing was said yet"),
        ("/tokens", "nothing was said yet"),
        ("/probs", "nothing was said yet"),
        ("/save", "no file is named: write /save FILE"),
        ("/load", "no file is named: write /load FILE"),
        ("/tokns", "did you mean /tokens?"),
    ],
)
def test_what_does_not_fit_changes_nothing(session: commands.Session, line: str, says: str) -> None:
    options = dict(session.chat.options)
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        commands.run_command(session, line)
    assert session.chat.options == options


def test_an_edit_without_a_keyboard_needs_the_text(session: commands.Session) -> None:
    ask(session, "Hi")
    with pytest.raises(UsageError, match="/edit TEXT"):
        commands.run_command(session, "/edit")


def test_tokens_are_shown_with_their_ids(session: commands.Session, capsys: pytest.CaptureFixture[str]) -> None:
    ask(session, "Hi")
    prompt, written = session.chat.last_answer()
    capsys.readouterr()
    commands.run_command(session, "/tokens")
    told = capsys.readouterr().err
    assert all(f"{token_id} " in told for token_id in written)
    assert f"{len(written)} tokens, " in told
    assert f"after a prompt of {len(prompt)} tokens" in told


def test_probabilities_are_those_of_the_models_own_logits(
    session: commands.Session, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(session, "Hi")
    prompt, written = session.chat.last_answer()
    with torch.no_grad():
        table = llm.model(torch.tensor([prompt + written])).logits[0].float().log_softmax(-1)
    reread = tokens.reread(llm, prompt, written, top=2)
    for place, likely in enumerate(reread, len(prompt) - 1):
        assert likely.logprob == pytest.approx(float(table[place, likely.token_id]), abs=1e-4)
        assert likely.top[0].token_id == int(table[place].argmax())
        assert likely.top[0].logprob == pytest.approx(float(table[place].max()), abs=1e-4)
    capsys.readouterr()
    commands.run_command(session, "/probs")
    told = capsys.readouterr().err
    assert told.count("%") >= len(written)
    assert "perplexity" in told


def test_a_saved_conversation_goes_on(session: commands.Session, llm: LLM, tmp_path: Path) -> None:
    session.chat.system = "Be kind."
    ask(session, "Hi")
    path = tmp_path / "with space.json"
    commands.run_command(session, f"/save {path}")
    commands.run_command(session, f"/save {path}")  # its own file may be written again
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["messages"] == session.chat.messages
    fresh = commands.Session(Conversation(llm, options=session.chat.options, seed=1))
    commands.run_command(fresh, f"/load {path}")
    assert fresh.chat.messages == session.chat.messages
    prompt, written = fresh.chat.last_answer()
    assert prompt == session.chat.last_answer()[0]
    assert llm.tokenizer.decode(written) == session.chat.turns[-1]["content"]
    assert fresh.chat.used() == session.chat.used() + 1  # the end of the turn, which was cut off
    commands.run_command(fresh, "/tokens")
    assert ask(fresh, "And you?") == answers(llm, "Hi", "And you?", system="Be kind.")[1]
    assert fresh.chat.undo() == "And you?"


def test_a_question_that_was_loaded_is_answered(session: commands.Session, llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text('[{"role": "user", "content": "Hi"}]', encoding="utf-8")
    commands.run_command(session, f"/load {path}")
    commands.run_command(session, "/retry")
    assert session.chat.turns[-1]["content"] == answers(llm, "Hi")[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 9999, "not valid JSON"),
        ("{}", "no list of messages"),
        ("3", "no list of messages"),
        ('{"messages": [{"role": "user"}]}', "message 1 in .* has no text"),
        ('["Hi"]', "message 1 in .* has no text"),
        ('[{"role": "tool", "content": "x"}]', "the role 'tool'"),
        ('[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]', "message 2 in .* 'system'"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_conversation(
    session: commands.Session, tmp_path: Path, content: str, says: str, llm: LLM
) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content, encoding="latin-1")
    ask(session, "Hi")
    before = session.chat.messages
    with pytest.raises(BrokenFileError, match=says) as caught:
        commands.run_command(session, f"/load {path}")
    assert "\n" not in str(caught.value)
    assert session.chat.messages == before
    with pytest.raises(UsageError, match="choose another name"):
        commands.run_command(session, f"/save {path}")
    assert path.read_text(encoding="latin-1") == content


def test_a_file_that_would_lose_something_is_written_over_by_force_only(
    session: commands.Session, tmp_path: Path
) -> None:
    path = tmp_path / "with space.json"
    ask(session, "Hi")
    commands.run_command(session, f"/save {path}")
    ask(session, "And you?")
    commands.run_command(session, f"/save {path}")  # goes on from what the file holds
    commands.run_command(session, "/undo")
    whole = path.read_text(encoding="utf-8")
    for content in (whole, '{"messages": [], "notes": 3}', "a letter", ""):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match=r"exists and holds something else: .* --force"):
            commands.run_command(session, f"/save {path}")
        assert path.read_text(encoding="utf-8") == content
        for line in (f"/save {path} --force", f"/save --force {path}"):
            path.write_text(content, encoding="utf-8")
            commands.run_command(session, line)
            assert transcript.load(path) == session.chat.messages
    with pytest.raises(UsageError, match="is no file"):
        commands.run_command(session, "/save /dev/null --force")
    with pytest.raises(UsageError, match="no file is named"):
        commands.run_command(session, "/save --force")
    with pytest.raises(NotFoundError, match=f"there is no folder {tmp_path / 'no'}: make it first") as told:
        commands.run_command(session, f"/save {tmp_path / 'no' / 'x.json'} --force")
    assert ".tmp" not in str(told.value)


def test_paths_that_cannot_be_read_or_written(session: commands.Session, tmp_path: Path) -> None:
    for line in (
        f"/load {tmp_path}",
        f"/load {tmp_path}/none",
        f"/save {tmp_path}",
        f"/save {tmp_path}/no/folder.json",
    ):
        with pytest.raises(LlamitaError):
            commands.run_command(session, line)
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_not_read(tmp_path: Path) -> None:
    assert stat.S_ISCHR(Path("/dev/zero").stat().st_mode)
    with pytest.raises(BrokenFileError, match="no conversation"):
        transcript.load(Path("/dev/zero"))
