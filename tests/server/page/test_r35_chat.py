"""R35: the chat, by real keys and clicks in a browser."""

import pytest

from tests.server.page.chromium import Browser, Tab
from tests.server.page.conftest import ask, over
from tests.server.page.scripted import Script, scripted_app, serving_app

PORT = "new URL(location).port"


def contents(script: Script) -> list[str]:
    """The texts of the last request's messages."""
    return [message["content"] for message in script.requests[-1]["messages"]]


def test_r35_an_answer_streams_in_with_its_speed_and_the_context_used(tab: Tab, script: Script) -> None:
    ask(tab)
    assert tab.text(".answer .body") == "I am a script."
    assert tab.text(".facts").startswith("5 tokens · 321 tokens/s · seed ")
    assert tab.text("#context-text") == "25 of 512 tokens"
    assert tab.evaluate("document.getElementById('context').position") == 25 / 512
    assert tab.text("#status") == "Answer: I am a script."
    request = script.requests[0]
    assert request.pop("seed") in range(2**31)
    assert request == {
        "model": "script",
        "messages": [{"role": "user", "content": "Who are you?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert tab.complaints() == []


def test_r35_text_shows_while_it_is_written(tab: Tab, script: Script) -> None:
    script.pause = 0.3
    tab.click("#suggestions button", "Who are you?")
    tab.wait("document.querySelector('.writing .body')?.innerText === 'I am'")
    assert tab.evaluate("document.querySelector('.answer').ariaBusy") == "true"


def test_r35_a_conversation_goes_on_with_all_its_turns(tab: Tab, script: Script) -> None:
    ask(tab)
    ask(tab, "And then?", answers=2)
    assert contents(script) == ["Who are you?", "I am a script.", "And then?"]


def test_r35_a_long_conversation_is_seen_at_its_end(browser: Browser, address: str, script: Script) -> None:
    tab = browser.open(address, width=700, height=420)
    for number in range(5):
        ask(tab, f"Question {number}", answers=number + 1)
    script.tokens, script.pause = ["line\n\n"] * 20, 0.02
    ask(tab, "The last one", answers=6)
    is_seen = "[...document.querySelectorAll('.foot')].at(-1).getBoundingClientRect().bottom < "
    is_seen += "document.getElementById('composer').getBoundingClientRect().top"
    assert tab.evaluate(is_seen)
    tab.evaluate("scrollTo(0, 0)")
    script.tokens = ["line\n\n"] * 5
    tab.click("#message")
    tab.type("Seen at once")
    tab.press("Enter")
    tab.wait("[...document.querySelectorAll('.said')].at(-1).innerText === 'Seen at once'")
    assert tab.evaluate(
        "[...document.querySelectorAll('.said')].at(-1).getBoundingClientRect().top < innerHeight - 100"
    )
    tab.evaluate("scrollTo(0, 0)")  # who reads above is left there
    over(tab, 7)
    assert tab.evaluate("scrollY") == 0
    tab.reload()
    tab.wait("!window.isOld && document.querySelectorAll('.turn').length === 14")
    assert tab.evaluate(is_seen)
    tab.close()


def test_r35_shift_enter_breaks_the_line_and_enter_sends(tab: Tab, script: Script) -> None:
    tab.click("#message")
    tab.type("one")
    tab.press("Enter", shift=True)
    ask(tab, "two")
    assert contents(script) == ["one\ntwo"]
    assert tab.evaluate("document.getElementById('message').value") == ""


def test_r35_nothing_is_sent_without_text(tab: Tab, script: Script) -> None:
    tab.click("#message")
    tab.type("  ")
    tab.press("Enter")
    ask(tab, "x")
    assert [len(request["messages"]) for request in script.requests] == [1]


@pytest.mark.parametrize("by_key", [False, True])
def test_r35_stop_aborts_the_request_and_go_on_continues_it(by_key: bool, tab: Tab, script: Script) -> None:
    script.tokens, script.pause = [f"w{i} " for i in range(500)], 0.05
    tab.click("#message")
    tab.type("Go")
    tab.press("Enter")
    tab.wait("document.querySelector('.body').innerText.includes('w2')")
    tab.press("Escape") if by_key else tab.click("#stop")
    over(tab)
    tab.wait("true")
    assert "stopped" in tab.text(".facts")
    written = tab.text(".body")
    for _ in range(200):
        if script.disconnects:
            break
        tab.evaluate("new Promise((done) => setTimeout(done, 20))")
    assert script.disconnects == 1
    script.tokens, script.pause = ["and on"], 0.0
    tab.click("button", "Go on")
    over(tab)
    assert tab.text(".body").startswith(written) and tab.text(".body").endswith("and on")
    assert script.requests[-1]["continue_final_message"] is True
    assert script.requests[-1]["messages"][-1]["role"] == "assistant"


def test_r35_an_edited_turn_is_asked_again_and_what_came_after_is_gone(tab: Tab, script: Script) -> None:
    ask(tab)
    ask(tab, "And then?", answers=2)
    tab.click(".question:first-child button", "Edit")
    tab.evaluate("document.querySelector('.editor textarea').select()")
    tab.type("Where are you?")
    tab.press("Enter")
    over(tab, 1)
    assert contents(script) == ["Where are you?"]
    assert (tab.text(".said"), tab.count(".turn")) == ("Where are you?", 2)


def test_r35_escape_leaves_a_turn_as_it_was(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click(".question button", "Edit")
    tab.type("More. ")
    tab.press("Escape")
    assert tab.text(".said") == "Who are you?"
    assert len(script.requests) == 1


def test_r35_escape_in_an_editor_stops_no_answer(tab: Tab, script: Script) -> None:
    ask(tab)
    script.tokens, script.pause = ["word "] * 100, 0.05
    tab.click("#message")
    tab.type("More")
    tab.press("Enter")
    tab.wait("document.querySelectorAll('.body')[1]?.innerText.includes('word')")
    tab.click(".question:first-child button", "Edit")
    tab.press("Escape")
    assert tab.count(".editor") == 0
    assert tab.count(".writing") == 1
    tab.press("Escape")
    over(tab, 2)


def test_r35_retry_writes_another_answer_with_another_seed(tab: Tab, script: Script) -> None:
    ask(tab)
    script.tokens = ["Something", " else"]
    tab.click("button", "Retry")
    tab.wait("document.querySelector('.body').innerText === 'Something else'")
    first, second = script.requests
    assert first["messages"] == second["messages"]
    assert first["seed"] != second["seed"]


def test_r35_replay_says_whether_the_answer_is_the_same(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click("button", "Replay")
    assert tab.text(".same") == "replayed: the same"
    assert {**script.requests[0], "receipt": True} == script.requests[1]
    script.tokens = ["I", " was", " a", " script", "."]
    tab.click("button", "Replay")
    assert tab.text(".other") == "replayed: differs from character 3 on"
    assert tab.text(".body") == "I am a script."


def test_r35_the_focus_stays_where_it_was(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click("button", "Replay")
    assert tab.text(".same")
    assert tab.evaluate("document.activeElement.innerText") == "Replay"
    script.pause = 0.2
    tab.click("button", "Retry")
    tab.wait("document.activeElement.id === 'stop'")
    over(tab)
    assert tab.evaluate("document.activeElement.id") == "send"


COPIED = "[...document.querySelectorAll('button')].some((one) => one.innerText === 'Copied')"


@pytest.fixture
def copying(browser: Browser, tab: Tab) -> Tab:
    """The page, which may read the clipboard."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.call("Browser.grantPermissions", browserContextId=tab.profile, permissions=permissions)
    return tab


@pytest.mark.parametrize("is_secure", [True, False])
def test_r35_an_answer_is_copied_as_markdown(is_secure: bool, copying: Tab, script: Script) -> None:
    script.tokens = ["**bold**"]
    ask(copying)
    copying.evaluate("window.read = navigator.clipboard.readText.bind(navigator.clipboard)")
    if not is_secure:  # as over plain HTTP from another machine
        copying.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    copying.click("button", "Copy")
    copying.wait(COPIED)
    assert copying.text("#status") == "Copied"
    assert copying.evaluate("read()") == "**bold**"
    assert copying.evaluate("document.activeElement.innerText") == "Copied"
    copying.evaluate("delete navigator.clipboard")


def test_r35_a_block_of_code_has_a_button_that_copies_it(copying: Tab, script: Script) -> None:
    script.tokens = ["```py\n", "a = 1\n\n", "b = '<b>'\n", "```\n", "Done.\n```\nother\n```"]
    ask(copying)
    assert copying.count(".code") == 2
    copying.click(".code:first-child button", "Copy")
    copying.wait(COPIED)
    assert copying.evaluate("navigator.clipboard.readText()") == "a = 1\n\nb = '<b>'"
    copying.wait(f"!{COPIED}")


def test_r35_a_new_chat_is_empty(tab: Tab, script: Script) -> None:
    ask(tab)
    tab.click("#new")
    assert tab.count(".turn") == 0
    ask(tab, "Hello")
    assert contents(script) == ["Hello"]


def test_r35_an_error_of_the_server_is_shown_and_can_be_tried_again(tab: Tab, script: Script) -> None:
    script.error = (400, "The prompt has 900 tokens, the model reads at most 512: shorten it.")
    ask(tab)
    assert tab.text(".answer .notice") == script.error[1]
    script.error = None
    tab.click("button", "Try again")
    tab.wait("document.querySelector('.body').innerText === 'I am a script.'")
    assert tab.count(".answer .notice") == 0


def test_r35_an_answer_that_breaks_off_says_so_and_keeps_its_text(tab: Tab, script: Script) -> None:
    script.breaks_after = 2
    ask(tab)
    assert tab.text(".body") == "I am"
    assert "broke off" in tab.text(".answer .notice")


def test_r35_a_server_that_went_away_is_an_error_and_its_return_is_enough(browser: Browser) -> None:
    script = Script()
    with serving_app(scripted_app(script)) as address:
        tab = browser.open(address)
        ask(tab)
    port = int(tab.evaluate(PORT))
    ask(tab, "Are you there?", answers=2)
    assert tab.text(".answer .notice") == "The server does not answer. Is it still running?"
    assert tab.evaluate("document.getElementById('send').hidden") is False
    with serving_app(scripted_app(script), port):
        tab.click("button", "Try again")
        tab.wait("[...document.querySelectorAll('.body')].at(-1).innerText === 'I am a script.'")
    tab.close()


def test_r35_a_server_that_dies_in_the_middle_of_an_answer_is_an_error(browser: Browser) -> None:
    script = Script(tokens=["word "] * 1000, pause=0.05)
    with serving_app(scripted_app(script)) as address:
        tab = browser.open(address)
        tab.wait("document.getElementById('model').value !== ''")
        tab.click("#suggestions button", "Who are you?")
        tab.wait("document.querySelector('.body')?.innerText.includes('word')")
    over(tab)
    assert "broke off" in tab.text(".answer .notice")
    tab.close()
