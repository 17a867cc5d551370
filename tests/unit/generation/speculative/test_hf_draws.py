"""What transformers' way of guessing comes down to, seen from inside: where guesses come from, and what is kept."""

import torch
from torch import Tensor

from llamita.generation.speculative.hf_draws import HFLookupProposer, continuations, decide
from llamita.generation.speculative.proposers import Drafts, PromptLookupProposer
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.sampling.history import LogitsProcessor
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import LogitsProcessorList

CHI_SQUARE_3 = 16.3  # exceeded once in a thousand by 3 degrees of freedom


def test_continuations_from_the_left_and_of_most_tokens_first() -> None:
    text = torch.tensor([1, 2, 3, 4, 1, 2, 5, 2, 6, 1, 2])
    assert [found.tolist() for found in continuations(text, 3, ngram=2)] == [
        [3, 4, 1], [5, 2, 6], [3, 4, 1], [5, 2, 6], [6, 1, 2],
    ]  # fmt: skip
    assert not list(continuations(torch.tensor([1, 2, 3]), 3, ngram=2))
    assert not list(continuations(text[:1], 3, ngram=2))


def guessed(
    ids: list[int], process: LogitsProcessor | None = None, *, ends: tuple[int, ...] = (), room: int = 9
) -> list[int]:
    lookup = HFLookupProposer(PromptLookupProposer(length=4, ngram=2), process=process, ends=ends, vocabulary=12)
    drafts = lookup.propose(RaggedBatch(torch.tensor([ids])), room)
    assert drafts.valid.all() and drafts.probabilities is None
    return drafts.tokens[0].tolist()


def test_a_guess_ends_where_something_is_forbidden() -> None:
    ids = [1, 2, 3, 4, 5, 1, 2, 7, 8, 9, 1, 2]

    def without(*banned: int) -> LogitsProcessorList:
        return LogitsProcessorList(SamplingParams(suppress_tokens=list(banned)), rows=1)

    assert guessed(ids) == [3, 4, 5, 1]
    assert guessed(ids, room=1) == [3, 4, 5, 1]  # as many as ever, room or not
    assert guessed(ids, room=0) == []
    assert guessed(ids, without(5)) == [3, 4]
    assert guessed(ids, without(3)) == [7, 8, 9, 1]
    assert guessed(ids, without(3, 7)) == []
    assert guessed(ids, ends=(5,)) == [3, 4]
    assert guessed(ids, ends=(3,)) == []
    filters = LogitsProcessorList(SamplingParams(do_sample=True, top_k=3), rows=1)
    assert not filters.reads_text and guessed(ids, filters) == [3, 4, 5, 1]


def test_a_decision_leaves_the_targets_distribution() -> None:
    torch.manual_seed(3)
    wanted, rounds = torch.tensor([0.5, 0.1, 0.1, 0.3]), 4000
    drawn_from = torch.tensor([[0.1, 0.6, 0.2, 0.1]])
    scores = wanted.log().expand(1, 2, 4)
    first, accepted = torch.zeros(4), 0
    for _ in range(rounds):
        token = torch.multinomial(drawn_from, 1)
        right, last = decide(scores, Drafts(token, token >= 0, probabilities=drawn_from[:, None]))
        first[int(token) if right else last] += 1
        accepted += right
    assert chi_square(first, wanted) < CHI_SQUARE_3
    assert abs(accepted / rounds - torch.minimum(wanted, drawn_from[0]).sum()) < 0.03


def chi_square(counts: Tensor, chances: Tensor) -> float:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_where_both_agree_all_is_accepted() -> None:
    scores = torch.randn(1, 5, 7)
    probabilities = scores.softmax(-1)[:, :4]
    tokens = torch.multinomial(probabilities[0], 1).T
    for _ in range(50):
        right, _ = decide(scores, Drafts(tokens, tokens >= 0, probabilities=probabilities))
        assert right == 4
