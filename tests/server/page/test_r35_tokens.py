"""R35: token probabilities, by real keys and clicks in a browser."""

import pytest

from tests.server.page.chromium import Tab
from tests.server.page.conftest import ask, over
from tests.server.page.scripted import Script

AM = [
    (" am", 0.5),
    (" was", 0.3),
    (" will", 0.1),
    (" a", 0.04),
    (" b", 0.02),
    (" c", 0.015),
    (" d", 0.01),
    (" e", 0.008),
]
AM += [("<|eot_id|>", 0.004), ("\n", 0.003)]
COLOUR = "getComputedStyle(document.querySelectorAll('.token')[{}]).backgroundColor"


@pytest.fixture
def answered(tab: Tab, script: Script) -> Tab:
    """An answer with its probabilities: "I am a script."."""
    script.alternatives = {" am": AM, "I": [("I", 1.0)]}
    tab.click("#probabilities")
    ask(tab)
    return tab


def test_r35_tokens_are_asked_for_and_coloured_by_probability(answered: Tab, script: Script) -> None:
    assert (script.requests[0]["logprobs"], script.requests[0]["top_logprobs"]) == (True, 10)
    assert answered.count(".token") == 5
    assert answered.text(".tokens") == "I am a script."
    certain, half, ninety = (answered.evaluate(COLOUR.format(i)) for i in (0, 1, 2))
    alphas = [float(colour.rpartition("/")[2].strip(" )")) if "/" in colour else 1.0 for colour in (half, ninety)]
    assert certain.endswith("/ 0)")
    assert alphas[0] > alphas[1] > 0


def test_r35_hovering_shows_ten_alternatives_with_bars(answered: Tab) -> None:
    answered.point(".token", " am")
    assert answered.count(".alternative") == 10
    rows = answered.evaluate("[...document.querySelectorAll('.alternative')].map((row) => row.innerText.split('\\n'))")
    assert rows[0] == ["·am", "50.0 %"]
    assert rows[8:] == [["end of answer", "0.4 %"], ["↵", "0.3 %"]]
    width = "parseFloat(getComputedStyle(document.querySelectorAll('.probability')[{}], '::before').width)"
    assert answered.evaluate(width.format(0)) / answered.evaluate(width.format(1)) == pytest.approx(5 / 3, rel=0.05)
    answered.point("#message")
    answered.wait("document.querySelector('.alternatives').hidden")


def test_r35_an_alternative_that_is_clicked_is_gone_on_from(answered: Tab, script: Script) -> None:
    script.tokens = [" a", " play", "."]
    answered.point(".token", " am")
    answered.click(".alternative", "·was")
    answered.wait("document.querySelector('.body').innerText === 'I was a play.'")
    over(answered)
    request = script.requests[1]
    assert request["messages"][-1] == {"role": "assistant", "content": "I was"}
    assert request["continue_final_message"] is True
    assert answered.text(".chosen") == " was"
    answered.point(".token", " was")  # what it was chosen from is still there
    answered.click(".alternative", "·will")
    answered.wait("document.querySelector('.body').innerText === 'I will a play.'")


def test_r35_the_end_as_an_alternative_ends_the_answer(answered: Tab, script: Script) -> None:
    answered.point(".token", " am")
    answered.click(".alternative", "end of answer")
    answered.wait("document.querySelector('.body').innerText === 'I'")
    assert len(script.requests) == 1


def test_r35_the_keyboard_reaches_tokens_and_alternatives(answered: Tab, script: Script) -> None:
    answered.evaluate("document.querySelector('.token').focus()")
    answered.press("ArrowRight")
    assert answered.evaluate("document.activeElement.innerText") == " am"
    answered.press("ArrowDown")
    assert answered.evaluate("document.activeElement.innerText").startswith("·was")
    answered.press("Escape")
    assert answered.evaluate("document.activeElement.innerText") == " am"
    answered.press("Enter")
    answered.press("ArrowDown")
    answered.press("Enter")
    answered.wait("document.querySelector('.chosen')?.innerText === ' will'")
    over(answered)
    assert script.requests[-1]["messages"][-1]["content"] == "I will"


def test_r35_the_list_closes_alone_and_where_the_focus_leaves_its_token(answered: Tab) -> None:
    is_closed = "document.querySelector('.alternatives').hidden"
    answered.click("#open-settings")
    answered.evaluate("document.querySelectorAll('.token')[1].focus()")
    answered.press("ArrowDown")
    answered.press("Escape")
    assert answered.evaluate(is_closed)
    assert answered.evaluate("document.getElementById('settings').hidden") is False
    answered.press("ArrowDown")
    answered.press("Escape")
    answered.press("Enter")
    assert not answered.evaluate(is_closed)
    answered.evaluate("document.querySelectorAll('.token')[1].focus()")
    answered.press("Tab")
    assert answered.evaluate("document.activeElement.innerText") == "Copy"
    assert answered.evaluate(is_closed)


def test_r35_a_later_turn_goes_with_the_answer_it_followed(answered: Tab, script: Script) -> None:
    ask(answered, "And then?", answers=2)
    answered.point(".turn:nth-child(2) .token", " am")
    answered.click(".alternative", "·was")
    over(answered, 1)
    assert answered.count(".turn") == 2


def test_r35_the_switch_shows_text_or_tokens_of_what_is_written(answered: Tab) -> None:
    answered.click("#probabilities")
    assert (answered.count(".token"), answered.text(".body")) == (0, "I am a script.")
    answered.click("#probabilities")
    assert (answered.count(".token"), answered.text(".body")) == (5, "I am a script.")


def test_r35_a_character_of_several_tokens_is_shown_once_and_not_cut(tab: Tab, script: Script) -> None:
    script.pieces = [b"\xf0\x9f", b"\xa6\x99", b" yes"]
    tab.click("#probabilities")
    ask(tab)
    assert tab.text(".tokens") == "🦙 yes"
    tab.point(".token", "🦙")
    assert tab.evaluate("[...document.querySelectorAll('.alternative')].map((row) => row.disabled)") == [True, True]
    assert "Part of a character" in tab.evaluate("document.querySelectorAll('.alternative')[1].title")


def test_r35_going_on_without_known_probabilities_keeps_the_text(tab: Tab, script: Script) -> None:
    script.finish = "length"
    ask(tab)
    tab.click("#probabilities")
    script.tokens = [" More", "."]
    tab.click("button", "Go on")
    tab.wait("document.querySelectorAll('.token').length === 3")
    over(tab)
    assert tab.text(".body") == "I am a script. More."
