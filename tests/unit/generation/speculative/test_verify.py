"""Speculation writes what the model would have written: greedily, by seed, and in distribution."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.cache import DynamicCache, StaticCache
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.generation.run import Acceptance
from llamita.generation.sequence import Sequence, SequenceBatch
from llamita.generation.speculative.proposers import (
    DraftModelProposer,
    Drafts,
    DraftTreeProposer,
    EarlyExitProposer,
    PromptLookupProposer,
    Proposer,
    follow,
)
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import draft_limit, residual, speculative_steps
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse
from llamita.sampling.history import History
from llamita.sampling.selection import TokenSelector

SMALL = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 1}
Maker = Callable[[LlamaForCausalLM, LlamaForCausalLM], Proposer]


class Oracle:
    """Guesses the true continuation of each row, wrong at every so-many-th place: ragged acceptance at will."""

    vocab_size = None
    caches: list[DynamicCache] = []  # noqa: RUF012

    def __init__(self, true: list[list[int]], prompt: int, wrong: int = 5, length: int = 4) -> None:
        self.true, self.prompt, self.wrong, self.length = true, prompt, wrong, length

    def propose(self, text: RaggedBatch, room: Tensor, *, selector: TokenSelector, cache: DynamicCache) -> Drafts:
        tokens = torch.zeros(len(room), self.length, dtype=torch.long)
        for row, true in enumerate(self.true):
            start = int(text.real[row, self.prompt :].sum()) if text.width > self.prompt else 0
            for i, token in enumerate(true[start : start + self.length]):
                tokens[row, i] = token if (start + i + row) % (self.wrong + row) else (token + 1) % 90
        return Drafts(tokens, torch.arange(self.length) < room[:, None])


MAKERS: dict[str, Maker] = {
    "lookup": lambda model, small: PromptLookupProposer(length=4),
    "draft": lambda model, small: DraftModelProposer(small, length=3),
    "confident": lambda model, small: DraftModelProposer(small, length=3, confidence=0.05),
    "itself": lambda model, small: DraftModelProposer(model, length=3),
    "exit": lambda model, small: EarlyExitProposer(model, layers=2, length=3),
    "tree": lambda model, small: DraftTreeProposer(small, branches=(3, 2, 1)),
    "own tree": lambda model, small: DraftTreeProposer(model, branches=(2, 2)),
    "exit tree": lambda model, small: DraftTreeProposer(EarlyExitProposer(model, layers=1), branches=(2, 1)),
}


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def small(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(4)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.2, **SMALL)).eval()


def prompts(rows: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 97, (rows, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : row + 1] = 0
    return ids, mask


def speculated(
    model: LlamaForCausalLM,
    drafter: Proposer,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    limits: list[int] | None = None,
    eos: tuple[int, ...] = (),
    acceptance: Acceptance | None = None,
    cache: Any = None,
    **choice: Any,
) -> list[list[int]]:
    stop = SequenceBatch([Sequence(limit, eos_token_ids=eos) for limit in limits or [16] * len(ids)])
    written: list[list[int]] = [[] for _ in ids]
    settings: dict[str, Any] = {"batch": stop, "selector": TokenSelector(len(ids), **choice), "acceptance": acceptance}
    for step in speculative_steps(model, RaggedBatch(ids, mask), drafter, cache=cache, **settings):
        for text, new, row in zip(written, step, stop.sequences, strict=True):
            assert new or row.finish is not None
            text += new
    assert written == [row.token_ids for row in stop.sequences]
    return written


def plain(model: LlamaForCausalLM, ids: Tensor, mask: Tensor, **flags: Any) -> list[list[int]]:
    out = model.generate(ids, attention_mask=mask, **{"max_new_tokens": 16, "eos_token_id": None, **flags})
    return out[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("name", MAKERS)
def test_greedy_equals_plain_decoding(model: LlamaForCausalLM, small: LlamaForCausalLM, name: str, rows: int) -> None:
    ids, mask = prompts(rows)
    acceptance = Acceptance()
    assert speculated(model, MAKERS[name](model, small), ids, mask, acceptance=acceptance) == plain(model, ids, mask)
    assert acceptance.written == 16 * rows
    if name == "itself":
        assert acceptance.rate == 1.0 and acceptance.tokens_per_pass == 4.0


@pytest.mark.parametrize("wrong", [1, 2, 5, 9])
def test_ragged_acceptance(model: LlamaForCausalLM, wrong: int) -> None:
    ids, mask = prompts(4)
    true = plain(model, ids, mask, max_new_tokens=40)
    acceptance, cache = Acceptance(), DynamicCache()
    found = speculated(
        model, Oracle(true, 7, wrong), ids, mask, limits=[40, 31, 22, 40], acceptance=acceptance, cache=cache
    )
    assert found == [true[0], true[1][:31], true[2][:22], true[3]]
    assert cache.length < 7 + 40 * 1.6  # holes were closed
    assert wrong == 1 or acceptance.tokens_per_pass > 1.2


@pytest.mark.parametrize("change", [{"sliding_window": 5}, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}])
def test_windows_and_other_positions(tiny_config: LlamaConfig, change: dict[str, Any]) -> None:
    if "rope_parameters" in change:
        change = {"rope_parameters": {**change["rope_parameters"], "rope_theta": 10000.0}}
    model = LlamaForCausalLM(
        LlamaConfig.from_dict({**tiny_config.to_dict(), "initializer_range": 0.2, **change})
    ).eval()
    ids, mask = prompts(3)
    true = plain(model, ids, mask)
    assert speculated(model, Oracle(true, 7), ids, mask) == true
    assert speculated(model, DraftTreeProposer(model, branches=(2, 1, 1)), ids, mask) == true


def test_ends_inside_a_guess(model: LlamaForCausalLM) -> None:
    ids, mask = prompts(2)
    true = plain(model, ids, mask)
    ends = (true[0][6], true[1][9])
    expected = [row[: min(row.index(end) for end in ends if end in row) + 1] for row in true]
    assert speculated(model, Oracle(true, 7, wrong=90), ids, mask, eos=ends) == expected


def test_a_process_of_the_text(model: LlamaForCausalLM, small: LlamaForCausalLM) -> None:
    def no_repeats(logits: Tensor, history: History) -> Tensor:
        seen = torch.zeros(logits.shape[0], 98, dtype=torch.bool).scatter(1, history.tokens % 98, True)[:, :97]
        return logits.masked_fill(seen, -torch.inf)

    ids, mask = prompts(3)
    alone = [
        speculated(model, Nothing(), ids[row : row + 1], mask[row : row + 1], process=no_repeats)[0] for row in range(3)
    ]
    for row, text in enumerate(alone):
        assert len(set(text)) == 16 and not {*text} & {*ids[row][mask[row] == 1].tolist()}
    for name, make in MAKERS.items():
        assert speculated(model, make(model, small), ids, mask, process=no_repeats) == alone, name


class Nothing(PromptLookupProposer):
    """Never guesses."""

    def propose(self, text: RaggedBatch, room: Tensor, **rest: Any) -> Drafts:
        return super().propose(text, torch.zeros_like(room), **rest)


@pytest.mark.parametrize("name", ["lookup", "tree", "own tree"])
def test_a_seed_gives_the_text_of_plain_sampling(model: LlamaForCausalLM, small: LlamaForCausalLM, name: str) -> None:
    ids, mask = prompts(3)
    seeds = [5, 6, 7]
    expected = plain(model, ids, mask, do_sample=True, top_k=0, seed=seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    assert speculated(model, MAKERS[name](model, small), ids, mask, greedy=False, generators=generators) == expected


def test_a_seeded_row_does_not_depend_on_its_batch_mates(model: LlamaForCausalLM, small: LlamaForCausalLM) -> None:
    def drawn(rows: list[int]) -> list[list[int]]:
        ids, mask = prompts(3)
        generators = [torch.Generator().manual_seed(row) for row in rows]
        settings: dict[str, Any] = {"limits": [[16, 9, 12][row] for row in rows], "greedy": False}
        return speculated(
            model, DraftModelProposer(small, length=4), ids[rows], mask[rows], generators=generators, **settings
        )

    together = drawn([0, 1, 2])
    assert [drawn([row])[0] for row in range(3)] == together


def test_greedy_rows_beside_drawn_ones(model: LlamaForCausalLM, small: LlamaForCausalLM) -> None:
    ids, mask = prompts(3)
    true = plain(model, ids, mask)
    for drafter in (DraftModelProposer(small, length=3), PromptLookupProposer()):
        found = speculated(model, drafter, ids, mask, greedy=[True, False, True])
        assert found[::2] == true[::2]
        assert found[1] != true[1]


@pytest.fixture(scope="module")
def pair(tiny_config: LlamaConfig) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    torch.manual_seed(0)
    config = tiny_config.replace(vocab_size=4, initializer_range=0.5, **SMALL)
    return LlamaForCausalLM(config.replace(num_hidden_layers=2)).eval(), LlamaForCausalLM(config).eval()


CHI_SQUARE_63 = 103.4  # exceeded once in a thousand by 63 degrees of freedom


@pytest.mark.parametrize("name", ["draft", "lookup", "exit", "tree", "exit tree", "confident"])
def test_the_distribution_is_the_models_own(pair: tuple[LlamaForCausalLM, LlamaForCausalLM], name: str) -> None:
    model, small = pair
    rows, ids = 3000, torch.tensor([[1, 2, 0, 1, 2]])
    drafter = EarlyExitProposer(model, layers=1, length=2) if name == "exit" else MAKERS[name](model, small)
    acceptance = Acceptance()
    torch.manual_seed(11)
    found = torch.tensor(
        speculated(model, drafter, ids.expand(rows, -1), limits=[3] * rows, greedy=False, acceptance=acceptance)
    )
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)  # (64, 3)
    texts = torch.cat((ids.expand(64, -1), every), dim=1)
    steps = model(texts).logits.detach().log_softmax(-1)[:, 4:7].gather(-1, every[..., None])[..., 0]
    expected = steps.sum(-1).exp() * rows
    counts = torch.bincount(found @ torch.tensor([16, 4, 1]), minlength=64)
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_63
    assert 0.05 < acceptance.rate <= 1


def test_the_residual() -> None:
    wanted, guessed = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.8, 0.0]]), torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.8, 0.0]])
    torch.testing.assert_close(residual(wanted, guessed), torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.8, 0.0]]))


def test_following_an_earlier_occurrence() -> None:
    text = torch.tensor([1, 2, 3, 4, 1, 2, 5, 6, 7, 1, 2])
    assert follow(text, 3, ngram=2).tolist() == [5, 6, 7]
    assert follow(text, 99, ngram=2).tolist() == [3, 4, 1, 2, 5, 6, 7, 1, 2]
    assert follow(torch.tensor([8, 1, 9, 1]), 2, ngram=3).tolist() == [9, 1]
    assert follow(torch.tensor([4, 4, 4, 4]), 2, ngram=2).tolist() == [4, 4]
    for nothing in (
        follow(text, 0, ngram=2),
        follow(torch.tensor([1, 2, 3]), 4, ngram=2),
        follow(text[:1], 4, ngram=2),
    ):
        assert nothing.tolist() == []


def test_going_on_from_a_cache(model: LlamaForCausalLM, small: LlamaForCausalLM) -> None:
    ids, mask = prompts(1)
    cache = DynamicCache()
    model(ids[:, :4], past_key_values=cache)
    assert speculated(model, DraftModelProposer(small), ids, cache=cache) == plain(model, ids, mask)


def test_what_cannot_work_is_said(model: LlamaForCausalLM, pair: tuple[LlamaForCausalLM, LlamaForCausalLM]) -> None:
    ids, _ = prompts(1)
    with pytest.raises(UsageError, match="the draft model has 4 tokens and the model 97"):
        speculated(model, DraftModelProposer(pair[1]), ids)
    with pytest.raises(UsageError, match="StaticCache"):
        speculated(model, PromptLookupProposer(), ids, cache=StaticCache(model.config, batch=1, capacity=40))
    for wrong in (
        lambda: PromptLookupProposer(length=0),
        lambda: DraftModelProposer(model, length=0),
        lambda: DraftTreeProposer(model, branches=(2, 0)),
        lambda: DraftTreeProposer(model, branches=()),
        lambda: EarlyExitProposer(model, layers=4),
    ):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.parametrize(("rows", "limit"), [(1, 15), (4, 3), (8, 1), (9, 0), (32, 0)])
def test_guessing_is_off_where_a_pass_of_so_many_rows_costs_more_than_it_saves(rows: int, limit: int) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    assert draft_limit(model, rows) == sys.maxsize
    assert draft_limit(fuse(model), rows) == limit
