"""Constraints hold for beams and for guesses, and the text is that of one step after another."""

from pathlib import Path

import pytest
import torch

from llamita.generation.beam import BeamRunner, beam_steps
from llamita.generation.beam_search import BeamSearch
from llamita.generation.sequence import Sequence, SequenceBatch
from llamita.generation.speculative.proposers import DraftModelProposer, DraftTreeProposer, PromptLookupProposer
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import speculative_steps
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.history import History
from llamita.sampling.selection import TokenSelector
from llamita.structured import stateless
from llamita.structured.grammar import Constraint, Constraints, Vocabulary, regex
from llamita.structured.stateless import StatelessConstraint
from llamita.tokenizer.load import load_tokenizer
from llamita.tokenizer.protocol import Tokenizer
from tests.small import END

FORMS = [r"[a-f]{4,9}-[0-9]{6}", r"(ab|ba|cc){8}"]


@pytest.fixture(scope="module")
def model(small_path: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(small_path)


@pytest.fixture(scope="module")
def tokenizer(small_path: Path) -> Tokenizer:
    return load_tokenizer(small_path)


@pytest.fixture
def constraints(tokenizer: Tokenizer) -> Constraints:
    vocabulary = Vocabulary(tokenizer)
    return Constraints([*(Constraint(regex(form), vocabulary) for form in FORMS), None])


PROMPTS = torch.tensor([[256, 64, 65, 66, 64], [256, 64, 65, 64, 65], [256, 70, 71, 70, 71]])


def step_by_step(model: LlamaForCausalLM, constraints: Constraints, limit: int) -> list[list[int]]:
    rows, text = [Sequence(limit, eos_token_ids=[END, END + 1]) for _ in PROMPTS], PROMPTS
    for _ in range(limit):
        step = constraints(model(text).logits[:, -1]).argmax(-1)
        constraints.append(step)
        text = torch.cat((text, step[:, None]), dim=1)
        for row, token in zip(rows, step.tolist(), strict=True):
            if row.finish is None:
                row.push(token)
    return [row.token_ids for row in rows]


def test_guesses(model: LlamaForCausalLM, constraints: Constraints) -> None:
    expected = step_by_step(model, Constraints([one and one.fork() for one in constraints.rows]), 24)
    for drafter in (
        PromptLookupProposer(length=4, ngram=1),
        DraftModelProposer(model, length=3),
        DraftTreeProposer(model, branches=(2, 1)),
    ):
        stop = SequenceBatch([Sequence(24, eos_token_ids=[END, END + 1]) for _ in PROMPTS])
        choice = TokenSelector(3, process=StatelessConstraint(constraints))
        for _ in speculative_steps(model, RaggedBatch(PROMPTS), drafter, batch=stop, selector=choice):
            pass
        assert [row.token_ids for row in stop.sequences] == expected


def test_beams(model: LlamaForCausalLM, tokenizer: Tokenizer, constraints: Constraints) -> None:
    search = BeamSearch(History.begin(PROMPTS), beams=3, limit=24, eos_token_ids=[END, END + 1], fill=END)
    for _ in beam_steps(BeamRunner(model, PROMPTS), search, process=StatelessConstraint(constraints)):
        pass
    written, _, _ = search.best(3)
    for row, text in enumerate(written[:6].tolist()):
        ids = [i for i in text if i < END]
        end = constraints.rows[row // 3]
        assert isinstance(end, Constraint)
        state = end.fork()
        for token in ids:
            state.accept(token)
        assert state.is_complete, tokenizer.decode(ids)


def test_what_was_forgotten_is_found_again(constraints: Constraints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stateless, "REMEMBERED", 5)
    trails = StatelessConstraint(Constraints(constraints.rows[1:2]))

    def allowed(text: list[int]) -> list[int]:
        history = History(torch.tensor([[9, *text]]), prompt_length=1)
        return trails(torch.zeros(1, 260), history).isfinite().nonzero()[:, 1].tolist()

    a, b, c = 64, 65, 66
    texts = [
        [*([a, b] * pairs), *rest] for pairs in range(8) for rest in ([], [a], [b], [c], [c, c], [b, a], [a, b, c])
    ]
    texts = [text for text in texts if len(text) < 16]
    first = [allowed(text) for text in texts]
    assert allowed([]) == [a, b, c] and allowed([a]) == [b] and allowed([c]) == [c]
    assert [allowed(text) for text in reversed(texts)] == first[::-1]


def test_free_rows_are_left_alone(constraints: Constraints) -> None:
    logits = torch.randn(3, 260)
    masked = StatelessConstraint(constraints)(logits, History.begin(PROMPTS))
    assert torch.equal(masked[2], logits[2])
    assert not torch.equal(masked[0], logits[0])
