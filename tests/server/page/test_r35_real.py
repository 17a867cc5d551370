"""R35: the page on the real server and cria: what it asks for is what the server understands, and answers repeat."""

from pathlib import Path

import pytest

from llamita.cli.main import main
from llamita.llm import LLM
from llamita.server.keys import Keys
from llamita.server.page.page import NAMES
from tests.server.page.chromium import Browser
from tests.server.page.conftest import ask, over
from tests.server.serving import Running, serving, wait_until


def test_r35_an_answer_of_cria_is_replayed_branched_and_continued(browser: Browser, server: Running) -> None:
    tab = browser.open(server.address)
    tab.click("#open-settings")
    for name, value in {"temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.01", "seed": "3"}.items():
        tab.click(f"[name={name}]")
        tab.type(value)
    tab.press("Escape")
    tab.click("#probabilities")
    ask(tab, "Tell me a story about a fox.")
    first = tab.text(".body")
    tab.click("button", "Replay")
    assert tab.text(".same") == "replayed: the same"
    tab.point(".token:nth-child(2)")
    assert tab.count(".alternative") == 10
    tab.click(".alternative:enabled")
    tab.wait("document.querySelector('.chosen') !== null")
    over(tab)
    assert tab.count(".notice:not([hidden])") == 0
    assert tab.text(".body") != first
    tab.click("button", "Replay")
    assert tab.text(".same") == "replayed: the same"
    tab.click("#probabilities")
    ask(tab, "Who are you?", answers=2)
    assert tab.text("#context-text").endswith(" of 512 tokens")
    assert tab.complaints() == []
    tab.close()


def test_r35_a_receipt_that_the_page_saved_is_replayed_by_the_command(
    browser: Browser, server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tab = browser.open(server.address)
    browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), browserContextId=tab.profile
    )
    ask(tab, "Tell me a story about a fox.")
    tab.click("button", "Replay")
    tab.click("button", "Receipt")
    wait_until((tmp_path / "receipt.json").exists, "the file")
    tab.close()
    assert main(["replay", str(tmp_path / "receipt.json")]) == 0
    assert capsys.readouterr().out.startswith("the same tokens")


def test_ts17_the_page_answers_to_the_servers_own_name_alone(server: Running) -> None:
    assert server.get("/").status_code == 200
    assert set(NAMES) <= server.server.paths  # so that the command line can point to the page
    assert server.get("/", host="evil.example").status_code == 403
    assert server.get("/page/app.js", origin="https://evil.example").headers.get("access-control-allow-origin") is None


def test_r35_stop_frees_the_engine(browser: Browser, server: Running) -> None:
    tab = browser.open(server.address)
    tab.wait("document.getElementById('model').value !== ''")
    engine = server.model.engine
    engine.call(lambda: tab.click("#suggestions button", "fox")).result()  # no step is made meanwhile
    tab.press("Escape")
    over(tab)
    assert "stopped" in tab.text(".facts")
    wait_until(lambda: (engine.stats.running, server.in_flight) == (0, 0), "an engine without work")
    tab.close()


def test_r35_the_page_needs_no_key_and_its_requests_do(browser: Browser, cria: LLM) -> None:
    with serving(cria, keys=Keys.of(["secret"])) as running:
        tab = browser.open(running.address)
        tab.wait("document.activeElement.name === 'key'")
        assert "API key" in tab.text("#trouble-text")
        tab.type("secret")
        tab.press("Tab")
        ask(tab)
        assert "cria" in tab.text(".body")
        tab.close()
