"""A headless Chromium for all tests of the page, and a scripted model for each."""

from collections.abc import Iterator

import pytest

from tests.server.page.chromium import Browser, Tab, chromium, find_chromium
from tests.server.page.scripted import Script, scripted_app, serving_app


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser; tests of it are skipped where none is installed."""
    if find_chromium() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def script() -> Script:
    """What the model writes."""
    return Script()


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    """Where the scripted server is."""
    with serving_app(scripted_app(script)) as at:
        yield at


@pytest.fixture(scope="session")
def window(browser: Browser) -> Tab:
    """A tab for all tests that have none of their own: a new one costs more than a test."""
    return browser.open("about:blank")


@pytest.fixture
def tab(window: Tab, address: str) -> Iterator[Tab]:
    """The page, with nothing stored."""
    window.visit(address)
    yield window
    window.leave()


def ask(tab: Tab, text: str = "Who are you?", *, answers: int = 1) -> None:
    """Write a message, send it, and wait until so many answers are over."""
    tab.wait("document.getElementById('model').value !== ''")
    tab.click("#message")
    tab.type(text)
    tab.press("Enter")
    over(tab, answers)


def over(tab: Tab, answers: int = 1) -> None:
    """Wait until so many answers are written and none is being written."""
    tab.wait(f"document.querySelectorAll('.facts').length === {answers} && document.getElementById('stop').hidden")
