"""Records to tokens: what is learned of each form of record."""

from pathlib import Path
from typing import Any

import pytest

from llamita.data.documents import IGNORED, Document, make_documents
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from tests.small import BEGIN, END


@pytest.fixture(scope="module")
def tokenizer(small_path: Path) -> Tokenizer:
    return load_tokenizer(small_path)


def document(tokenizer: Tokenizer, *, learns_all: bool = False, **fields: Any) -> Document:
    return make_documents([Record(fields, "x.jsonl:1")], tokenizer, learns_all=learns_all)[0]


def learned(tokenizer: Tokenizer, document: Document) -> str:
    """The text that is learned, its control tokens spelled out."""
    targets = document.targets[document.targets != IGNORED].tolist()
    return tokenizer.decode(targets, skip_special_tokens=False)


def test_of_a_text_everything_is_learned(tokenizer: Tokenizer) -> None:
    made = document(tokenizer, text="ab")
    assert made.is_splittable
    assert made.inputs.tolist() == [BEGIN, *tokenizer.encode("ab", add_special_tokens=False)]
    assert made.targets.tolist()[-1] == END
    assert learned(tokenizer, made) == "ab<|end_of_text|>"


def test_of_a_prompt_nothing_is_learned(tokenizer: Tokenizer) -> None:
    made = document(tokenizer, prompt="Why? ", completion="So.")
    assert not made.is_splittable
    assert len(made) == 9
    assert learned(tokenizer, made) == "So.<|end_of_text|>"
    assert learned(tokenizer, document(tokenizer, prompt="Why? ", completion="So.", learns_all=True)) == (
        "Why? So.<|end_of_text|>"
    )


def test_of_messages_the_assistant_s_are_learned(tokenizer: Tokenizer) -> None:
    talk = [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": "a<|eot_id|>"},
        {"role": "assistant", "content": "bcd"},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f"},
    ]
    made = document(tokenizer, messages=talk)
    assert learned(tokenizer, made) == "bcd<|eot_id|>f<|eot_id|>"
    assert tokenizer.decode(made.inputs.tolist()).startswith("system: Be nice.user: a<|eot_id|>assistant: bcd")


def test_cria_s_template_too(cria_path: Path) -> None:
    tokenizer = load_tokenizer(cria_path)
    talk = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": " Good day to you. "}]
    assert learned(tokenizer, document(tokenizer, messages=talk)) == "Good day to you.<|eot_id|>"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "x.jsonl:1 has no token to learn"),
        ({"messages": []}, "x.jsonl:1: the conversation is empty"),
    ],
)
def test_a_record_to_learn_nothing_from_is_refused(tokenizer: Tokenizer, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        document(tokenizer, **fields)


def test_a_template_that_rewrites_the_past_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd"}, {"role": "user", "content": "e"}]
    monkeypatch.setattr(tokenizer, "chat_templates", {"default": "{{ messages | length }}{{ messages[0].content }}"})
    with pytest.raises(UsageError, match="writes message 2 otherwise once others follow"):
        document(tokenizer, messages=talk)
