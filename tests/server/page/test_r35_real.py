"""R35: the page on the real server and cria: what it asks for is what the server understands, and answers repeat."""

from collections.abc import Iterator

import pytest

import llamita
from llamita.server.app import create_app
from llamita.server.keys import Keys
from llamita.server.models import ServedModel
from llamita.server.settings import ServerSettings
from tests.server.page.chromium import Browser
from tests.server.page.conftest import ask, over
from tests.server.serving import serving


@pytest.fixture(scope="module")
def cria() -> Iterator[ServedModel]:
    engine = llamita.load().engine()
    yield ServedModel("cria", engine)
    engine.close(0)


def test_r35_an_answer_of_cria_is_replayed_branched_and_continued(browser: Browser, cria: ServedModel) -> None:
    with serving(create_app([cria])) as address:
        tab = browser.open(address)
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


def test_r35_stop_frees_the_engine(browser: Browser, cria: ServedModel) -> None:
    with serving(create_app([cria])) as address:
        tab = browser.open(address)
        tab.wait("document.getElementById('model').value !== ''")
        cria.engine.call(lambda: tab.click("#suggestions button", "fox")).result()  # no step is made meanwhile
        tab.press("Escape")
        over(tab)
        assert "stopped" in tab.text(".facts")
        tab.wait("document.getElementById('stop').hidden")
        for _ in range(500):
            if not cria.engine.stats.running and not cria.in_flight:
                break
            tab.evaluate("new Promise((done) => setTimeout(done, 10))")
        assert (cria.engine.stats.running, cria.in_flight) == (0, 0)
        tab.close()


def test_r35_the_page_needs_no_key_and_its_requests_do(browser: Browser, cria: ServedModel) -> None:
    settings = ServerSettings(keys=Keys.of(["secret"]))
    with serving(create_app([cria], settings)) as address:
        tab = browser.open(address)
        tab.wait("document.activeElement.name === 'key'")
        assert "API key" in tab.text("#trouble-text")
        tab.type("secret")
        tab.press("Tab")
        ask(tab)
        assert "cria" in tab.text(".body")
        tab.close()
