"""Greedy assisted generation writes what transformers' writes: by a draft model, early exit and prompt lookup."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.config import LlamaConfig
from llamita.generation.sequence import Sequence, SequenceBatch
from llamita.generation.speculative.proposers import (
    DraftModelProposer,
    DraftTreeProposer,
    EarlyExitProposer,
    PromptLookupProposer,
    Proposer,
)
from llamita.generation.speculative.ragged import RaggedBatch
from llamita.generation.speculative.verify import speculative_steps
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.selection import TokenSelector

ENDS = [11, 23]


@pytest.fixture(scope="module")
def ours(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config.replace(initializer_range=0.2, bos_token_id=1, eos_token_id=ENDS, pad_token_id=0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def draft(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(4)
    config = tiny_config.replace(initializer_range=0.2, num_hidden_layers=1, eos_token_id=ENDS, pad_token_id=0)
    return LlamaForCausalLM(config).eval()


def written(model: LlamaForCausalLM, drafter: Proposer, ids: Tensor) -> list[int]:
    stop = SequenceBatch([Sequence(20, eos_token_ids=ENDS)])
    for _ in speculative_steps(model, RaggedBatch(ids), drafter, batch=stop, selector=TokenSelector(1)):
        pass
    return stop.sequences[0].token_ids


def test_greedy(ours: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    theirs: Any = peers.twin(ours)
    helpers: list[tuple[Proposer, dict[str, Any]]] = [
        (PromptLookupProposer(length=5), {"prompt_lookup_num_tokens": 5}),
        (PromptLookupProposer(length=3, ngram=1), {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}),
        (DraftModelProposer(draft), {"assistant_model": peers.twin(draft)}),
        (EarlyExitProposer(ours, layers=2), {"assistant_early_exit": 2}),
        (DraftTreeProposer(draft), {}),
    ]
    for seed in range(4):
        ids = torch.randint(6, 97, (1, 9), generator=torch.Generator().manual_seed(seed))
        ids = torch.cat((ids, ids[:, 2:6]), dim=1)
        for drafter, flags in helpers:
            theirs.generation_config.assistant_early_exit = None
            reference = theirs.generate(ids, max_new_tokens=20, do_sample=False, **flags)
            assert written(ours, drafter, ids) == reference[0, ids.shape[1] :].tolist(), flags


def test_the_way_of_batches_draws_no_more_than_plain_decoding(ours: LlamaForCausalLM) -> None:
    ids = torch.randint(6, 97, (1, 9))
    torch.manual_seed(5)
    plain = ours.generate(ids, do_sample=True, top_k=0, max_new_tokens=20)[0, 9:].tolist()
    torch.manual_seed(5)
    stop = SequenceBatch([Sequence(20, eos_token_ids=ENDS)])
    for _ in speculative_steps(
        ours,
        RaggedBatch(ids),
        PromptLookupProposer(length=4, ngram=1),
        batch=stop,
        selector=TokenSelector(1, greedy=False),
    ):
        pass
    assert stop.sequences[0].token_ids == plain


def test_scores_and_logits(ours: LlamaForCausalLM, draft: LlamaForCausalLM) -> None:
    theirs, their_draft = peers.twin(ours), peers.twin(draft)
    ids = torch.randint(6, 97, (1, 9), generator=torch.Generator().manual_seed(2))
    flags: dict[str, Any] = {"max_new_tokens": 12, "repetition_penalty": 1.4, "return_dict_in_generate": True}
    flags |= {"output_scores": True, "output_logits": True}
    mine = ours.generate(ids, assistant_model=draft, **flags)
    peer: Any = theirs.generate(ids, assistant_model=their_draft, do_sample=False, **flags)
    assert mine.sequences.tolist() == peer.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(mine[name]) == len(peer[name]) == mine.sequences.shape[1] - 9
        for a, b in zip(mine[name], peer[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
