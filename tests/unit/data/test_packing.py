"""Packing: the waste on real lengths, and what is said of a document that does not fit."""

import random

import pytest
import torch

from llamita.data.documents import Document
from llamita.data.packing import pack, plan
from llamita.errors import UsageError


def document(length: int, *, is_splittable: bool) -> Document:
    tokens = torch.zeros(length, dtype=torch.int32)
    return Document(tokens, tokens, is_splittable, where="x.jsonl:3")


def test_conversations_of_any_length_waste_less_than_two_percent() -> None:
    draw = random.Random(0)
    documents = [document(min(512, int(draw.lognormvariate(4.5, 1)) + 1), is_splittable=False) for _ in range(2000)]
    rows = plan(documents, 512)
    assert sum(map(len, documents)) >= 0.98 * 512 * len(rows)


def test_a_document_that_may_not_be_cut_must_fit() -> None:
    with pytest.raises(UsageError, match=r"x.jsonl:3 has 9 tokens, a row 8: shorten it, or pass --length 9"):
        pack([document(9, is_splittable=False)], 8)
    assert len(pack([document(9, is_splittable=True)], 8)) == 2


def test_the_fingerprint_tells_data_apart() -> None:
    one, other = pack([document(5, is_splittable=True)], 8), pack([document(6, is_splittable=True)], 8)
    assert one.fingerprint() == pack([document(5, is_splittable=True)], 8).fingerprint() != other.fingerprint()
