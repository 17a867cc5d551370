"""T-S18: what a model writes is text. It renders as a small set of Markdown, and nothing of it runs or loads."""

import json
from collections.abc import Iterator

import pytest

from tests.server.page.chromium import Browser, Tab
from tests.server.page.conftest import ask
from tests.server.page.scripted import Script, scripted_app, serving_app

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "<script>window.hacked=1</script>",
    "<svg onload='window.hacked=1'><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVaScRiPt:window.hacked=1)",
    "[click](java\tscript:window.hacked=1)",
    "[click](data:text/html,<script>opener.hacked=1</script>)",
    "[click](//evil.example) [click](file:///etc/passwd) [click](vbscript:x)",
    "![x](https://evil.example/leak.png)",
    "`<b>` **<img src=x onerror=window.hacked=1>** # <i>x</i>",
    "```<script>window.hacked=1</script>\n<img src=x onerror=window.hacked=1>\n```",
    "- <details open ontoggle=window.hacked=1>x\n> <style>*{display:none}</style>",
    '[x](https://example.com/"onmouseover="window.hacked=1)',
    "<a href='javascript:window.hacked=1'>x</a> {{constructor.constructor('window.hacked=1')()}}",
]
FOREIGN = ":is(.turns, .alternatives) :is(img, script, iframe, svg, style, object, embed, form, input, link, details)"


@pytest.mark.parametrize("as_tokens", [False, True], ids=["markdown", "tokens"])
def test_ts18_hostile_answers_stay_inert(as_tokens: bool, tab: Tab, script: Script) -> None:
    script.tokens = [f"{text}\n\n" for text in HOSTILE]
    script.alternatives = {token: [(token, 0.5), (HOSTILE[0], 0.5)] for token in script.tokens}
    if as_tokens:
        tab.click("#probabilities")
    ask(tab, HOSTILE[0])
    if as_tokens:
        tab.point(".token:nth-child(2)")
        assert tab.count(".alternative") == 2
    assert tab.count(FOREIGN) == 0
    assert tab.evaluate("window.hacked") is None
    links = tab.evaluate("[...document.querySelectorAll('.turns a')].map((a) => [a.protocol, a.rel, a.target])")
    assert all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    attributes = "[...document.querySelectorAll('.turns *')].flatMap((e) => e.getAttributeNames())"
    assert not [name for name in tab.evaluate(attributes) if name.startswith("on")]
    for shown in ("<img src=x onerror='window.hacked=1'>", "<script>window.hacked=1</script>", "javascript:"):
        assert shown in tab.text(".answer .body")
    assert tab.text(".said") == HOSTILE[0]
    assert tab.complaints() == []


def test_ts18_hostile_names_and_errors_stay_inert(tab: Tab, script: Script) -> None:
    script.error = (400, HOSTILE[0])
    ask(tab)
    assert tab.text(".notice") == HOSTILE[0]
    assert tab.count(FOREIGN) == 0


def test_ts17_the_policy_stops_what_gets_in_nevertheless(tab: Tab) -> None:
    tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))"
    )
    tab.evaluate("document.body.setAttribute('onclick', 'window.hacked=1'), document.body.click()")
    refused = "fetch('https://example.com/', {mode: 'no-cors'}).then(() => 'sent', () => 'refused')"
    assert tab.evaluate(refused) == "refused"
    tab.evaluate("addEventListener('securitypolicyviolation', (event) => (window.stopped = event.effectiveDirective))")
    tab.evaluate("document.body.append(document.createElement('form')), document.forms.item(2).submit()")
    tab.wait("window.stopped === 'form-action'")
    assert tab.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints())


@pytest.fixture(scope="module")
def plain(browser: Browser) -> Iterator[Tab]:
    """A page to render in, of no test's own."""
    with serving_app(scripted_app(Script())) as address:
        tab = browser.open(address)
        yield tab
        tab.close()


def code_html(text: str, language: str = "") -> str:
    """A block of code with its head."""
    copy = '<button type="button" class="quiet" title="Copy the code">Copy</button>'
    head = f'<div class="code-head">{language}{copy}</div>'
    return f'<div class="code" dir="ltr">{head}<pre tabindex="0"><code>{text}</code></pre></div>'


MARKDOWN = {
    "# One\n## Two #": "<h2>One</h2><h3>Two</h3>",
    "**b** *c* ***d*** __e__ _f_ `g`": (
        "<p><strong>b</strong> <em>c</em> <strong><em>d</em></strong> <strong>e</strong> <em>f</em> <code>g</code></p>"
    ),
    "snake_case_name 2 * 3 * 4 \\*x\\* a_b": "<p>snake_case_name 2 * 3 * 4 *x* a_b</p>",
    "**open and `open and [open](": "<p>**open and `open and [open](</p>",
    "``a ` b``": "<p><code>a ` b</code></p>",
    "- a\n- b\n  - c\n- d": '<ul dir="auto"><li>a</li><li>b<ul dir="auto"><li>c</li></ul></li><li>d</li></ul>',
    "3. a\n4. b": '<ol dir="auto" start="3"><li>a</li><li>b</li></ol>',
    "* a\n\n* b\n\ntext": '<ul dir="auto"><li>a</li><li>b</li></ul><p>text</p>',
    "```js\nlet x = '<b>';\n\n# no\n```\nafter": code_html("let x = '&lt;b&gt;';\n\n# no", "js") + "<p>after</p>",
    "~~~\nstill open": code_html("still open"),
    "> a\n> - b": '<blockquote dir="auto"><p>a</p><ul dir="auto"><li>b</li></ul></blockquote>',
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "~~gone~~ ~left~ a ~~ b": "<p><del>gone</del> ~left~ a ~~ b</p>",
    "- [x] done\n- [ ] *to do*\n- [y] no": (
        '<ul dir="auto"><li class="task">\u2611 done</li><li class="task">\u2610 <em>to do</em></li>'
        "<li>[y] no</li></ul>"
    ),
    "text\n| a | b\\|c | d |\n|:--|:-:|--:|\n| `1` | **2** |\n| <b> | x | y | more |\n\nafter": (
        '<p>text</p><div class="wide-table" tabindex="0"><table dir="auto"><thead><tr><th>a</th>'
        '<th class="center">b|c</th><th class="right">d</th></tr></thead>'
        '<tbody><tr><td><code>1</code></td><td class="center"><strong>2</strong>'
        '</td><td class="right"></td></tr><tr><td>&lt;b&gt;</td><td class="center">x</td><td class="right">y</td></tr>'
        "</tbody></table></div><p>after</p>"
    ),
    "a | b\n--- | ---\n1 | 2": (
        '<div class="wide-table" tabindex="0"><table dir="auto"><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    ),
    "a | b\n---\n| a | b |\n| - |": "<p>a | b</p><hr><p>| a | b |\n| - |</p>",
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
}


@pytest.mark.parametrize("text", MARKDOWN, ids=range(len(MARKDOWN)))
def test_r35_markdown_renders_as_elements(text: str, plain: Tab) -> None:
    assert rendered(plain, text) == MARKDOWN[text]


GROWING = """
import('/page/markdown.js').then(({Markdown}) => {
  const text = %s, grown = document.createElement('div'), markdown = new Markdown(grown), kept = new Set(), wrong = [];
  for (let end = 0; end <= text.length; end++) {
    const whole = document.createElement('div');
    markdown.show(text.slice(0, end));
    new Markdown(whole).show(text.slice(0, end));
    if (grown.innerHTML !== whole.innerHTML) wrong.push(text.slice(0, end));
    if (grown.firstChild) kept.add(grown.firstChild);
  }
  return [wrong, kept.size];
})"""


def test_r35_a_text_that_grows_renders_as_the_whole_and_keeps_its_first_blocks(plain: Tab) -> None:
    text = "".join(f"{text}\n\n***a*** b\n{text}\n--- x\n" for text in MARKDOWN)
    wrong, first_nodes = plain.evaluate(GROWING % json.dumps(text))
    assert wrong == []
    assert first_nodes < 20


@pytest.mark.parametrize(
    ("text", "href", "label"),
    [
        ("see [the **page**](https://a.example/x_(y)).", "https://a.example/x_(y)", "the page"),
        ("see https://a.example/b_c?d=1, then", "https://a.example/b_c?d=1", "https://a.example/b_c?d=1"),
        ("(http://a.example)", "http://a.example", "http://a.example"),
    ],
)
def test_r35_links_to_the_web_are_links(text: str, href: str, label: str, plain: Tab) -> None:
    plain.evaluate(f"{render_js(text)}.then((div) => document.body.replaceChildren(div))")
    link = plain.evaluate(
        "(() => { const a = document.querySelector('#probe a'); return [a.getAttribute('href'), a.innerText]; })()"
    )
    assert link == [href, label]


@pytest.mark.parametrize(
    "text",
    [
        "*a " * 30_000, "x" + "`" * 60_000, "[" * 60_000, "> " * 5_000 + "x", "- " * 5_000 + "x", "**a **b" * 9_000,
        "|" * 60_001 + "\n" + "|-" * 60_000, "a|b\n-|-\n" * 9_000, "~~a " * 20_000,
    ],
)  # fmt: skip
def test_ts18_hostile_markdown_renders_at_all(text: str, plain: Tab) -> None:
    assert len(rendered(plain, text)) > 100


def rendered(tab: Tab, text: str) -> str:
    """The HTML of a rendered text."""
    return tab.evaluate(f"{render_js(text)}.then((div) => div.innerHTML)")


def render_js(text: str) -> str:
    """A promise of an element with the rendered text."""
    append = f"div.id = 'probe'; new Markdown(div).show({json.dumps(text)}); return div"
    return (
        "import('/page/markdown.js').then(({Markdown}) => "
        f"{{ const div = document.createElement('div'); {append}; }})"
    )
