"""The sandbox of chat templates: transformers' dialect, and bounds on what a template may do."""

from datetime import datetime

import pytest

from llamita.errors import BrokenFileError, UsageError
from llamita.tokenizer import template as sandbox
from llamita.tokenizer.chat import render

HELLO = [{"role": "user", "content": "Hello"}]


def grown(start: str, step: str, use: str = "") -> str:
    """A template that grows a value in 99 steps."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set ns.x = {step} %}}{{% endfor %}}{use}"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}", "Hello\n"),
        ("{% for i in 'abc' %}{% if i == 'a' %}{% continue %}{% endif %}{{ i }}{% break %}{% endfor %}", "b"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!"),
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f('b') ~ 2 }}", "<1><b>2"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ custom }}", "True True True 7"),
        ("{{ undefined_name }}{{ bos_token }}", ""),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 'a,b'.split(',') | join('+') }} {{ ' x '.strip() | upper }} {{ '%s-%d' % ('a', 3) }}", "a+b X a-3"),
        ("{{ '{}:{:>3}'.format('k', 1) }} {{ 'ab' * 2 }} {{ [1] + [2] }} {{ 2 ** 3 * 2 }}", "k:  1 abab [1, 2] 16"),
        ("{{ dict(a=1) }} {{ 'a' ~ 1 ~ none }}", "{'a': 1} a1None"),
        ("{{ messages[0].content is string }} {{ messages[0] is mapping }} {{ messages | last | items | list }}",
         "True True [('role', 'user'), ('content', 'Hello')]"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ],
)  # fmt: skip
def test_the_dialect_of_transformers(template: str, text: str):
    assert render(template, HELLO, custom=7) == text


def test_the_dialect_equals_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    for template in (
        "{{ messages | tojson(indent=4) }}{{ messages[0] | dictsort }}",
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m['content'][::-1] }}{% endfor %}",
        "  {%- if messages[0].nothing is defined %}a{% else %}b{% endif %}  \n{{ 'x' if tools else 'y' }}\n",
        "{% macro kind(spec) %}{% if spec is mapping %}dict[{{ kind(spec['of']) }}]{% else %}{{ spec }}{% endif %}"
        "{% endmacro %}{% for name, spec in {'a': {'of': 'int'}, 'b': 'str'} | items %}"
        "{{ name + '=' -}}{{ '%s' | format(kind(spec)) }}{% if not loop.last %}, {% endif %}{% endfor %}",
        "{{ messages | map(attribute='content') | map('upper') | join(', ') }}{{ 'abc' | replace('b', 'x') | title }}",
        "{{ (1, 'a', [2.5]) }}{{ none }}{{ 7 // 2 }}{{ 'é' | tojson(ensure_ascii=true) }}{{ 'a\\nb' | indent(2) }}",
    ):
        theirs, _ = render_jinja_template([HELLO], chat_template=template, add_generation_prompt=True)
        assert render(template, HELLO) == theirs[0], template


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' }}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ [1] * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | indent(1000000000, first=true) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ 9 ** 99 ** 9 }}",
        grown('3', 'ns.x * ns.x'),
        grown("'ab'", 'ns.x ~ ns.x'),
        grown("'ab'", 'ns.x + ns.x'),
        grown("'ab'", "ns.x.replace('a', ns.x)"),
        grown("'ab'", "ns.x | replace('a', ns.x)"),
        grown("'ab'", "ns.x.join(['x', 'y', 'z'])"),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x * 2 }}{% endset %}{% endfor %}",
        grown('[1]', 'ns.x + ns.x'),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(99999) | join('a' * 1000000) }}",
        "{{ (5).to_bytes(1000000000, 'big') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% set ns = namespace(__html__=1) %}",
        "{% include 'x' %}",
        "{{ lipsum() }}{{ cycler.__init__.__globals__.os.popen('id') }}",
    ],
)  # fmt: skip
def test_ts5_ts6_hostile_templates_end_with_one_sentence(template: str):
    with pytest.raises((UsageError, BrokenFileError), match="the chat template") as caught:
        render(template, HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        grown("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
        grown("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_ts6_work_that_doubles_60_times_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch):
    """By a tenth of the limit, all of which takes seconds: to work without end every limit is the same."""
    monkeypatch.setattr(sandbox, "MAX_WORK", sandbox.MAX_WORK // 10)
    with pytest.raises(UsageError, match="the chat template does not take these messages: it takes too long"):
        render(template, HELLO)


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ 'a' | no_such_filter }}", "{{", "{% for a in b recursive %}{% endfor %}"]
)
def test_damaged_templates_are_broken_files(template: str):
    with pytest.raises(BrokenFileError, match="the chat template"):
        render(template, HELLO)


def test_long_conversations_are_affordable():
    messages = [{"role": "user", "content": "x" * 1000} for _ in range(1000)]
    template = "{% for m in messages %}{% set rest = messages[loop.index0:] | list %}{{ m.content | trim }}{% endfor %}"
    assert len(render(template, messages)) == 1_000_000
