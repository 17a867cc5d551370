"""R35: what is kept of a conversation on the page: over a reload, after a new chat, and in files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.page.chromium import Browser, Tab
from tests.server.page.conftest import ask, over
from tests.server.page.scripted import Script

RELOADED = "!window.isOld && document.getElementById('model').value !== ''"


@pytest.fixture
def downloads(browser: Browser, tab: Tab, tmp_path: Path) -> Iterator[Path]:
    """A folder that downloads of the tab go to."""
    where = {"browserContextId": tab.profile, "eventsEnabled": True}
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), **where)
    yield tmp_path
    browser.call("Browser.setDownloadBehavior", behavior="deny", browserContextId=tab.profile)


def downloaded(tab: Tab, path: Path) -> Any:
    """The JSON of a file once it is there."""
    for _ in range(500):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        tab.evaluate("new Promise((done) => setTimeout(done, 20))")
    raise AssertionError(f"{path} was never saved")


def open_file(tab: Tab, path: Path) -> None:
    """Choose a file for the button that opens a chat."""
    document = tab.call("DOM.getDocument")["root"]["nodeId"]
    field = tab.call("DOM.querySelector", nodeId=document, selector="input[type=file]")["nodeId"]
    tab.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])


def test_r35_a_reload_keeps_the_conversation_and_all_that_can_be_done_with_it(tab: Tab, script: Script) -> None:
    tab.click("#probabilities")
    ask(tab)
    tab.click("#open-settings")
    tab.click("[name=system]")
    tab.type("Later.")  # no part of what was asked
    facts = tab.text(".facts")
    tab.reload()
    tab.wait(RELOADED)
    assert (tab.text(".said"), tab.text(".body"), tab.text(".facts")) == ("Who are you?", "I am a script.", facts)
    assert tab.text("#context-text") == "25 of 512 tokens"
    tab.click("#probabilities")
    assert tab.count(".token") == 5
    tab.click("button", "Replay")
    assert tab.text(".same") == "replayed: the same"
    assert {**script.requests[0], "receipt": True} == script.requests[1]
    ask(tab, "And then?", answers=2)
    assert [message["role"] for message in script.requests[2]["messages"]] == ["system", "user", "assistant", "user"]
    assert tab.complaints() == []


def test_r35_a_reload_in_the_middle_of_an_answer_stops_it_and_it_can_go_on(tab: Tab, script: Script) -> None:
    script.tokens, script.pause = [f"w{i} " for i in range(500)], 0.02
    tab.click("#message")
    tab.type("Go")
    tab.press("Enter")
    tab.wait("document.querySelector('.body').innerText.includes('w2')")
    tab.reload()
    tab.wait(RELOADED)
    written = tab.text(".body")
    assert written.startswith("w0 w1 w2") and "stopped" in tab.text(".facts")
    script.tokens, script.pause = ["and on"], 0.0
    tab.click("button", "Go on")
    over(tab)
    assert tab.text(".body") == f"{written} and on"


def test_r35_a_conversation_too_long_to_keep_is_kept_without_its_probabilities(tab: Tab, script: Script) -> None:
    tab.click("#probabilities")
    ask(tab)
    tab.evaluate("sessionStorage.clear(), sessionStorage.setItem('other', 'x'.repeat(5 * 2**20 - 700))")
    tab.reload()
    tab.wait(RELOADED)
    tab.click("#probabilities")
    assert (tab.text(".body"), tab.count(".token")) == ("I am a script.", 0)


@pytest.mark.parametrize("kept", ["{", "{}", "7"])
def test_r35_a_broken_store_is_an_empty_conversation(kept: str, tab: Tab) -> None:
    tab.evaluate("addEventListener('pagehide', () => sessionStorage.setItem('llamita.chat', window.kept))")
    tab.evaluate(f"window.kept = {kept!r}")
    tab.reload()
    tab.wait(RELOADED)
    assert tab.count(".turn") == 0
    assert tab.complaints() == []


def test_r35_the_chat_before_a_new_one_can_be_brought_back(tab: Tab, script: Script) -> None:
    ask(tab)
    assert tab.count("#back:not([hidden])") == 0
    tab.click("#new")
    assert tab.count(".turn") == 0
    tab.click("#back")
    assert (tab.text(".said"), tab.text(".body")) == ("Who are you?", "I am a script.")
    ask(tab, "And then?", answers=2)
    assert len(script.requests[1]["messages"]) == 3


def test_r35_a_chat_is_saved_as_a_request_and_opened_again(tab: Tab, script: Script, downloads: Path) -> None:
    tab.click("#open-settings")
    tab.click("[name=system]")
    tab.type("You are brief.")
    tab.click("#save-chat")  # there is none yet
    ask(tab)
    tab.click("#save-chat")
    saved = downloaded(tab, downloads / "chat.json")
    assert saved["model"] == "script"
    assert [message["content"] for message in saved["messages"]] == ["You are brief.", "Who are you?", "I am a script."]
    tab.click("#reset")
    tab.click("#new")
    open_file(tab, downloads / "chat.json")
    tab.wait("document.querySelectorAll('.turn').length === 2")
    ask(tab, "And then?", answers=2)
    assert script.requests[1]["messages"][:3] == saved["messages"]
    assert tab.complaints() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"role": "tool", "content": "x"}]', '[{"role": "user"}]'])
def test_r35_a_file_without_a_conversation_changes_nothing(text: str, tab: Tab, tmp_path: Path) -> None:
    ask(tab)
    (tmp_path / "other.json").write_text(text)
    tab.click("#open-settings")
    open_file(tab, tmp_path / "other.json")
    tab.wait("document.getElementById('file-hint').innerText.startsWith('This file has no conversation')")
    assert tab.count(".turn") == 2


def test_r35_a_replayed_answer_has_a_receipt_to_save(tab: Tab, script: Script, downloads: Path) -> None:
    ask(tab)
    assert tab.count("button[title*=receipt]") == 0
    tab.click("button", "Replay")
    tab.click("button", "Receipt")
    saved = downloaded(tab, downloads / "receipt.json")
    request = {name: value for name, value in script.requests[0].items() if not name.startswith("stream")}
    assert saved == {"request": request, "receipts": [{"version": 1}]}


def test_r35_the_chosen_model_is_remembered(tab: Tab, script: Script) -> None:
    tab.wait("document.getElementById('model').value === 'script'")
    tab.evaluate("document.getElementById('model').focus()")
    tab.press("ArrowDown")
    tab.reload()
    tab.wait(RELOADED)
    ask(tab)
    assert script.requests[0]["model"] == "second"


def test_r35_the_answers_before_a_retry_and_a_choice_are_still_there(tab: Tab, script: Script) -> None:
    tab.click("#probabilities")
    ask(tab)
    assert tab.count(".versions") == 0
    script.tokens = ["Something", " else"]
    tab.click("button", "Retry")
    tab.wait("document.querySelector('.body').innerText === 'Something else'")
    over(tab)
    assert "2 of 2" in tab.text(".versions")
    tab.click(".versions button", "‹")
    assert (tab.text(".body"), "1 of 2" in tab.text(".versions")) == ("I am a script.", True)
    assert f"seed {script.requests[0]['seed']}" in tab.text(".facts")
    script.tokens = [" new"]
    tab.point(".token", " am")
    tab.click(".alternative", "·other")
    tab.wait("document.querySelector('.body').innerText === 'I other new'")
    over(tab)
    tab.reload()
    tab.wait(RELOADED)
    assert (tab.text(".body"), "3 of 3" in tab.text(".versions")) == ("I other new", True)
    tab.click(".versions button", "‹")
    assert tab.text(".body") == "Something else"
    script.tokens = ["Something", " else"]
    tab.click("button", "Replay")
    assert tab.text(".same") == "replayed: the same"
    assert script.requests[-1]["seed"] == script.requests[1]["seed"]
    ask(tab, "And then?", answers=2)
    assert [message["content"] for message in script.requests[-1]["messages"]] == [
        "Who are you?",
        "Something else",
        "And then?",
    ]
    assert tab.evaluate("document.querySelector('.versions').checkVisibility()") is False
    assert tab.complaints() == []


def test_r35_a_replay_says_nothing_of_another_version(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click("button", "Retry")
    tab.wait("document.querySelector('.versions') !== null")
    script.pause = 0.3
    tab.click("button", "Replay")
    tab.click(".versions button", "‹")
    tab.wait("document.getElementById('stop').hidden")
    assert "replay" not in tab.text(".facts")
