"""Beams beyond what transformers does: streams, stop strings, seeds of their own, other caches."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.cache import StaticCache
from llamita.config import LlamaConfig
from llamita.errors import UsageError
from llamita.generation.beam import BeamRunner, beam_steps, untouched
from llamita.generation.beam_search import BeamSearch, stops_at
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.history import History
from llamita.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.3)).eval()


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(3, 97, (3, 6))


def found(
    model: LlamaForCausalLM, ids: Tensor, feed: BeamRunner | None = None, process: Any = untouched, **settings: Any
) -> list[list[int]]:
    search = BeamSearch(History.begin(ids), **settings)
    streamed: list[list[int]] = [[] for _ in ids]
    for step in beam_steps(feed or BeamRunner(model, ids), search, process=process):
        streamed = [text + new for text, new in zip(streamed, step, strict=True)]
    best, origins, _ = search.best()
    assert streamed == [row[row_origins >= 0].tolist() for row, row_origins in zip(best, origins, strict=True)]
    return streamed


def test_one_beam_is_greedy(model: LlamaForCausalLM, prompt: Tensor) -> None:
    greedy = model.generate(prompt, max_new_tokens=8, eos_token_id=None)
    assert found(model, prompt, beams=1, limit=8) == greedy[:, 6:].tolist()


def test_a_small_tree_is_searched_whole(model: LlamaForCausalLM) -> None:
    ids = torch.tensor([[4, 9, 7]])
    first = model(ids).logits[:, -1].log_softmax(-1)[0]
    pairs = torch.cat((ids.expand(97, -1), torch.arange(97)[:, None]), dim=1)
    second = model(pairs).logits[:, -1].log_softmax(-1)
    best = int((first[:, None] + second).argmax())
    assert found(model, ids, beams=97, limit=2) == [[best // 97, best % 97]]


def test_a_seeded_prompt_does_not_depend_on_its_batch_mates(model: LlamaForCausalLM, prompt: Tensor) -> None:
    def drawn(ids: Tensor, seeds: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return found(model, ids, beams=3, limit=9, eos_token_ids=[5, 6], do_sample=True, generators=generators)

    together = drawn(prompt, [1, 2, 3])
    assert [drawn(prompt[row : row + 1], [row + 1])[0] for row in range(3)] == together


def test_what_streams_was_never_taken_back(model: LlamaForCausalLM, prompt: Tensor) -> None:
    search = BeamSearch(History.begin(prompt), beams=3, limit=12, eos_token_ids=list(range(10, 40)))
    streamed: list[list[int]] = [[] for _ in prompt]
    lengths = []
    for step in beam_steps(BeamRunner(model, prompt), search):
        streamed = [text + new for text, new in zip(streamed, step, strict=True)]
        lengths.append(sum(map(len, streamed)))
        for row, text in enumerate(streamed):
            hypotheses = [search.finished.tokens[row, 0]] if search.is_over else search.running.tokens[row]
            if bool(search._open[row]) or search.is_over:
                assert all(one[: len(text)].tolist() == text for one in hypotheses)
    assert lengths[0] < lengths[-1]


def test_a_stop_string_ends_a_beam(small_path: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(small_path), load_tokenizer(small_path)
    ids = torch.tensor([[256, 72, 85]])

    def printable(logits: Tensor, history: History) -> Tensor:
        return logits.masked_fill(torch.arange(260) > 93, -math.inf)

    whole = tokenizer.decode(found(model, ids, process=printable, beams=3, limit=12)[0])
    stop = whole[1:3]
    ends = stops_at([stop], tokenizer)
    stopped = found(model, ids, process=printable, beams=3, limit=12, stops=ends, length_penalty=-9.0)
    assert tokenizer.decode(stopped[0]) == whole[: whole.index(stop) + 2]


def test_a_static_cache_and_embeddings(model: LlamaForCausalLM, prompt: Tensor) -> None:
    expected = found(model, prompt, beams=3, limit=6)
    cache = StaticCache(model.config, batch=3, capacity=12)
    assert found(model, prompt, BeamRunner(model, prompt, past_key_values=cache), beams=3, limit=6) == expected
    embeds = model.get_input_embeddings()(prompt).detach()
    for use_cache in (True, False):
        feed = BeamRunner(model, inputs_embeds=embeds, use_cache=use_cache)
        assert found(model, prompt[:, :0], feed, beams=3, limit=6) == expected


def test_wrong_settings_are_said(prompt: Tensor) -> None:
    with pytest.raises(UsageError, match="beams is 0"):
        BeamSearch(History.begin(prompt), beams=0, limit=3)
    with pytest.raises(UsageError, match="early_stopping is 'soon'"):
        BeamSearch(History.begin(prompt), beams=2, limit=3, early_stopping="soon")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="num_return_sequences is 3"):
        BeamSearch(History.begin(prompt), beams=2, limit=3).best(3)
