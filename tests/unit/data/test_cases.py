"""Cases, found again in packed rows."""

import torch

from llamita.data.cases import Case, cases
from llamita.data.documents import IGNORED, Document
from llamita.data.loader import take
from llamita.data.packing import pack


def test_prompts_and_answers_are_found_again() -> None:
    texts = [([1, 2, 3, 4], 2), ([5, 6, 7], 1), ([8, 9], 1)]  # ids, and the first that is learned
    documents = []
    for ids, first in texts:
        targets = torch.tensor([one if place + 1 >= first else IGNORED for place, one in enumerate(ids[1:])])
        documents.append(Document(torch.tensor(ids[:-1]), targets, is_splittable=False))
    rows = pack(documents, 8)
    found = list(cases(take(rows, torch.arange(len(rows)))))
    assert sorted((case.prompt, case.answer) for case in found) == [([1, 2], [3, 4]), ([5], [6, 7]), ([8], [9])]
    assert [case.has_one_answer for case in found if case.prompt == [1, 2]] == [True]


def test_what_is_learned_in_the_middle_is_no_single_answer() -> None:
    assert not Case([1, 2, 3, 4], [False, False, True, False]).has_one_answer
