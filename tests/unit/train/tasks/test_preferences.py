"""Records of preferences as documents, and what is wrong with them in one sentence."""

from pathlib import Path
from typing import Any

import pytest

from llamita.data.documents import IGNORED
from llamita.data.records import Record
from llamita.errors import UsageError
from llamita.tokenizer.load import load_tokenizer
from llamita.train.tasks.preferences import pair_documents, rated_documents

ASK = [{"role": "user", "content": "Hi"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_pairs_are_two_texts_of_one_document(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    for fields in (
        {"prompt": "Hi", "chosen": " you", "rejected": " no one"},
        {"prompt": ASK, "chosen": answer("you"), "rejected": answer("no one")},
    ):
        (document,) = pair_documents([Record(fields, "x:1")], tokenizer)
        parts = document.targets.split([document.starts[1], len(document) - document.starts[1]])
        texts = [tokenizer.decode(part[part != IGNORED].tolist()) for part in parts]
        assert [text.removesuffix("<|eot_id|>").removesuffix("<|end_of_text|>").strip() for text in texts] == [
            "you",
            "no one",
        ]
        assert not document.is_splittable


def test_a_rated_answer_has_another_prompt_s_answer_beside_it(small_path: Path) -> None:
    tokenizer = load_tokenizer(small_path)
    records = [Record({"prompt": str(n), "completion": f" is {n}", "label": n % 2 == 0}, f"x:{n}") for n in range(3)]
    documents = rated_documents(records, tokenizer)
    assert [one.label for one in documents] == [1.0, -1.0, 1.0]
    second = documents[0].inputs[documents[0].starts[1] :]
    assert tokenizer.decode(second.tolist()).endswith("0 is 1")
    pairs = [Record({"prompt": "a", "chosen": "b", "rejected": "c"}, "x:1")]
    assert [one.label for one in rated_documents(pairs, tokenizer)] == [1.0, -1.0]


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (pair_documents, {"prompt": "a", "chosen": "b", "rejected": "b"}, "x:1 has the same text as chosen and as"),
        (pair_documents, {"text": "a"}, "x:1 is no pair: give the fields prompt, chosen and rejected"),
        (pair_documents, {"prompt": "a", "chosen": "b", "rejected": answer("c")}, "x:1: one part is a text"),
        (pair_documents, {"prompt": ASK, "chosen": ASK, "rejected": answer("c")}, "x:1 has no token to learn"),
        (rated_documents, {"prompt": "a", "completion": "b"}, "x:1 has no rating: give the fields prompt"),
        (rated_documents, {"prompt": "a", "completion": "b", "label": True}, "the data has one answer: give more"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(make: Any, fields: dict[str, Any], message: str, small_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make([Record(fields, "x:1")], load_tokenizer(small_path))
