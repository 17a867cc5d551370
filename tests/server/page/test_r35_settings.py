"""R35: settings, key, models, theme and width of the page, by real keys and clicks in a browser."""

import pytest

from tests.server.page.chromium import Browser, Tab
from tests.server.page.conftest import ask
from tests.server.page.scripted import Script

SETTINGS = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 12, "seed": 7}


def fill(tab: Tab, name: str, text: str) -> None:
    """Replace what stands in a field of the panel, and leave the field."""
    tab.click(f"[name={name}]")
    tab.evaluate(f"document.querySelector('[name={name}]').select()")
    tab.type(text)
    tab.press("Tab")


def test_r35_settings_reach_the_request_and_outlive_a_reload(tab: Tab, script: Script) -> None:
    tab.click("#open-settings")
    for name, value in SETTINGS.items():
        fill(tab, name, str(value))
    fill(tab, "system", "You are brief.")
    tab.click("#close-settings")
    tab.reload()
    ask(tab)
    request = script.requests[0]
    assert {name: request[name] for name in SETTINGS} == SETTINGS
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][0]["content"] == "You are brief."


def test_r35_reset_leaves_everything_to_the_model(tab: Tab, script: Script) -> None:
    tab.click("#open-settings")
    fill(tab, "temperature", "0.5")
    tab.click("#reset")
    ask(tab)
    assert "temperature" not in script.requests[0]


def test_r35_a_wrong_setting_is_shown_and_not_sent(tab: Tab, script: Script) -> None:
    tab.click("#open-settings")
    fill(tab, "temperature", "3")
    tab.click("#close-settings")
    tab.click("#message")
    tab.type("Hello")
    tab.press("Enter")
    tab.wait("!document.getElementById('settings').hidden && document.activeElement.name === 'temperature'")
    assert script.requests == []
    assert tab.evaluate("document.getElementById('message').value") == "Hello"


def test_r35_the_page_asks_for_a_key_and_keeps_it_for_the_tab_alone(
    browser: Browser, address: str, script: Script
) -> None:
    script.key = "secret"
    tab = browser.open(address)
    tab.wait("document.activeElement.name === 'key'")
    assert tab.text("#trouble-text") == "The API key is wrong."
    assert tab.text("#key-hint") == "The API key is wrong."
    tab.type("secret")
    tab.press("Tab")
    tab.wait("document.getElementById('trouble').hidden && document.getElementById('settings').hidden")
    ask(tab)
    assert tab.text(".body") == "I am a script."
    tab.click("#open-settings")
    tab.click("[name=system]")
    tab.type("x")  # makes the page store its settings again
    assert "secret" not in tab.evaluate("JSON.stringify({...localStorage}) + document.cookie + location")
    assert "secret" in tab.evaluate("JSON.stringify({...sessionStorage})")
    tab.close()


def test_r35_the_chosen_model_is_asked(tab: Tab, script: Script) -> None:
    tab.wait("document.getElementById('model').options.length === 2")
    tab.evaluate("document.getElementById('model').focus()")
    tab.press("ArrowDown")
    ask(tab)
    assert script.requests[0]["model"] == "second"


def test_r35_the_theme_follows_the_system_until_it_is_switched(browser: Browser, address: str) -> None:
    tab = browser.open(address, theme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    assert tab.evaluate(paper) == "rgb(27, 26, 24)"
    tab.click("#theme")
    assert tab.evaluate(paper) == "rgb(251, 250, 247)"
    tab.reload()
    assert tab.evaluate(paper) == "rgb(251, 250, 247)"
    tab.click("#theme")
    assert tab.evaluate(paper) == "rgb(27, 26, 24)"
    tab.close()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_r35_nothing_is_wider_than_a_phone(width: int, browser: Browser, address: str, script: Script) -> None:
    script.tokens = ["x" * 400, "\n\n```\n", "y" * 400, "\n```\n", "# " + "z" * 300]
    tab = browser.open(address, width=width, height=800)
    ask(tab, "w" * 300)
    for _ in range(2):
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        tab.click("#probabilities")
    tab.click("#open-settings")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.close()


def test_r35_a_long_name_of_a_model_leaves_the_buttons_their_size(browser: Browser, address: str) -> None:
    tab = browser.open(address, width=320, height=700)
    tab.wait("document.getElementById('model').value !== ''")
    tab.evaluate("document.getElementById('model').options[0].text = 'long-name-'.repeat(20)")
    widths = tab.evaluate(
        "[...document.querySelectorAll('.icon')].filter((e) => e.checkVisibility()).map((e) => e.offsetWidth)"
    )
    assert min(widths) >= 38
    assert tab.evaluate("document.documentElement.scrollWidth") == 320
    tab.close()


def test_r35_escape_closes_the_settings(tab: Tab) -> None:
    tab.click("#open-settings")
    assert tab.evaluate("document.getElementById('open-settings').ariaExpanded") == "true"
    tab.click("[name=system]")
    tab.press("Escape")
    tab.wait("document.getElementById('settings').hidden")
    assert tab.evaluate("document.activeElement.id") == "open-settings"


def test_r35_every_control_has_a_name_and_a_visible_focus(tab: Tab) -> None:
    tab.click("#open-settings")
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "combobox", "spinbutton", "MenuListPopup", "progressbar")
    controls = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    unnamed = [node for node in controls if not node.get("name", {}).get("value")]
    assert len(controls) > 15
    assert [node["role"] for node in unnamed if node["role"]["value"] != "MenuListPopup"] == []
    tab.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_r35_text_goes_in_the_direction_of_its_first_letter(tab: Tab, script: Script) -> None:
    script.tokens = ["English.\n\nمرحبا (a).\n\n- שלום\n\n```\nمرحبا\n```"]
    ask(tab, "مرحبا.")
    tab.evaluate(
        "window.isOnTheRight = (name) => { const range = document.createRange(); "
        "range.selectNodeContents(document.querySelector(name)); "
        "const body = document.querySelector('.body').getBoundingClientRect(); "
        "return range.getClientRects()[0].left > body.x + body.width / 2; }"
    )
    found = [tab.evaluate(f"isOnTheRight({name!r})") for name in (".body p", ".body p + p", ".body li", ".body pre")]
    assert found == [False, True, True, False]
    assert tab.evaluate("getComputedStyle(document.querySelector('.body ul')).direction") == "rtl"
    assert tab.evaluate("getComputedStyle(document.getElementById('message')).unicodeBidi") == "plaintext"


def test_r35_what_is_printed_is_the_conversation(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click("#open-settings")
    tab.call("Emulation.setEmulatedMedia", media="print")
    shown = (
        "[...document.querySelectorAll('button, textarea, select, header, footer')].filter((e) => e.checkVisibility())"
    )
    assert tab.evaluate(f"{shown}.length") == 0
    assert (tab.text(".said"), tab.text(".body")) == ("Who are you?", "I am a script.")
    assert tab.evaluate("document.body.getBoundingClientRect().width === innerWidth")
    tab.call("Emulation.setEmulatedMedia", media="")
