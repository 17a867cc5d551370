"""llamita replay writes an answer again from its receipt, and says what differs."""

import json
from pathlib import Path
from typing import Any

import pytest

import llamita
from llamita.cli.main import main


@pytest.fixture(scope="module")
def asked(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with receipts of a text and of a chat, and the chat's request."""
    folder = tmp_path_factory.mktemp("receipts")
    llm = llamita.load(small_path)
    messages: list[Any] = [{"role": "user", "content": "Who?"}]
    with llm.engine() as engine:
        text = engine.submit("Once", max_tokens=9, temperature=1.0, logprobs=1)
        prompt = llm.chat(messages, max_tokens=1).prompt_token_ids
        chat = engine.submit(prompt, reads_on=False, max_tokens=9, temperature=1.0)
        for name, handle in (("text", text), ("chat", chat)):
            handle.result(300)
            answer = {"id": name, "receipts": [engine.receipt(handle).to_dict()]}
            (folder / f"{name}.json").write_text(json.dumps(answer))
    (folder / "request.json").write_text(json.dumps({"messages": messages, "temperature": 1.0}))
    (folder / "ids.json").write_text(json.dumps({"prompt": text.prompt_token_ids}))
    (folder / "list.json").write_text(json.dumps({"prompt": ["Twice", "Once"]}))
    page = {**json.loads((folder / "chat.json").read_text()), "request": {"messages": messages}}
    (folder / "page.json").write_text(json.dumps(page))
    (folder / "no.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("receipt", "prompt"),
    [
        ("text", ["-p", "Once"]),
        ("text", ["--request", "ids.json"]),
        ("text", ["--request", "list.json"]),
        ("chat", ["--request", "request.json"]),
        ("page", []),  # with the request beside it, as the chat page saves it
        ("page", ["--request", "request.json"]),
    ],
)
def test_the_same(
    asked: Path, small_path: Path, capsys: pytest.CaptureFixture[str], receipt: str, prompt: list[str]
) -> None:
    words = [str(asked / word) if word.endswith(".json") else word for word in prompt]
    assert main(["replay", str(asked / f"{receipt}.json"), *words, "-m", str(small_path)]) == 0
    assert capsys.readouterr().out.startswith("the same tokens")


def test_an_adapters_answer_needs_its_adapter(
    small_path: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with llamita.load(small_path, adapters={"one": adapter}).engine() as engine:
        handle = engine.submit("Once", adapter="one", max_tokens=9, temperature=1.0)
        handle.result(300)
        path = tmp_path / "receipt.json"
        path.write_text(json.dumps(engine.receipt(handle).to_dict()))
    words = ["replay", str(path), "-p", "Once", "-m", str(small_path)]
    assert main([*words, "--adapter", str(adapter)]) == 0
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().err
    assert "weights is" in said
    assert "adapter is" in said
    assert "None here" in said


def test_what_differs(asked: Path, small_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", str(asked / "text.json"), "-p", "Twice", "-m", str(small_path)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert "prompt is" in shown.err
    assert shown.out.startswith("other tokens")
    assert main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["is_equal"], found["differences"][0][:9]) == (False, "prompt is")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["none.json", "-p", "a"], 3, "none.json is not there"),
        (["none.json"], 3, "none.json is not there"),
        (["no.json", "-p", "a"], 1, "no.json is no JSON"),
        (["request.json", "-p", "a"], 1, "this is no receipt"),
        (["text.json", "--request", "text.json"], 2, "neither messages nor a prompt"),
        (["text.json"], 2, "a receipt has no text in it"),
        (["page.json", "-p", "Who?"], 1, "prompt is"),
        ([".", "-p", "a"], 2, "is a folder"),
    ],
)
def test_bad_input(
    asked: Path, small_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    words = [str(asked / word) if word.endswith("json") or word == "." else word for word in words]
    assert main(["replay", *words, "-m", str(small_path)]) == code
    assert message in capsys.readouterr().err


def test_a_published_story_is_written_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_path: Path
) -> None:
    monkeypatch.setenv("LLAMITA_MODEL", str(small_path))
    assert main(["replay"]) == 0
    story, verdict = capsys.readouterr().out.rsplit("\n\n", 1)
    assert story.startswith("Once upon a time,") and verdict.startswith("the same tokens and log-probabilities: ")
    assert main(["replay", "-p", "Once"]) == 2
    assert "name its file" in capsys.readouterr().err
    assert main(["replay", "receipt.json"]) != 0
