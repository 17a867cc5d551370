"""Take the pictures of the page in docs/images: `python -m tests.server.page.screenshots`; needs a Chromium."""

import tempfile
from pathlib import Path

import llamita
from tests.architecture.source import ROOT
from tests.server.page.chromium import Browser, Tab, chromium
from tests.server.page.conftest import ask
from tests.server.serving import serving

FOLDER = ROOT / "docs" / "images"
QUIET = "document.activeElement.blur(), getSelection().removeAllRanges(), scrollTo(0, 0)"


def main() -> None:
    """Write light, dark and phone."""
    FOLDER.mkdir(exist_ok=True)
    with (
        serving(llamita.load()) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile)) as browser,
    ):
        light(browser, server.address)
        dark(browser, server.address)
        phone(browser, server.address)


def light(browser: Browser, address: str) -> None:
    """A story as tokens, with the alternatives of one."""
    tab = begun(browser.open(address, width=1080, height=700), 5)
    tab.click("#probabilities")
    ask(tab, "Tell me a story about a fox.")
    tab.evaluate(QUIET)
    tab.point(f".token:nth-child({open_choice(tab) + 1})")
    tab.screenshot(FOLDER / "page-light.png")
    tab.close()


def dark(browser: Browser, address: str) -> None:
    """A story that was replayed, with the settings open."""
    tab = begun(browser.open(address, width=1120, height=700, theme="dark"), 11)
    ask(tab, "Tell me a story about a cat.")
    tab.click("button", "Replay")
    tab.text(".same")
    tab.click("#open-settings")
    tab.evaluate(QUIET)
    tab.point("#message")
    tab.screenshot(FOLDER / "page-dark.png")
    tab.close()


def phone(browser: Browser, address: str) -> None:
    """A short story on a phone."""
    tab = begun(browser.open(address, width=390, height=720, scale=1.5), 11)
    ask(tab, "Who are you?")
    tab.click("#probabilities")
    ask(tab, "Tell me a story about a hen.", answers=2)
    tab.evaluate(QUIET)
    tab.point("#message")
    tab.screenshot(FOLDER / "page-phone.png")
    tab.close()


def begun(tab: Tab, seed: int) -> Tab:
    """The page with a seed."""
    tab.wait("document.getElementById('model').value !== ''")
    tab.click("#open-settings")
    tab.click("[name=seed]")
    tab.type(str(seed))
    tab.click("#close-settings")
    return tab


def open_choice(tab: Tab) -> int:
    """The index of a token of the first lines that had real alternatives."""
    surprises = tab.evaluate(
        "[...document.querySelectorAll('.token')].slice(5, 40).map((t) => +t.style.getPropertyValue('--surprise'))"
    )
    return 5 + min(range(len(surprises)), key=lambda i: abs(surprises[i] - 0.35))


if __name__ == "__main__":
    main()
