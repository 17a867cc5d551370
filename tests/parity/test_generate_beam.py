"""Beams equal transformers': tokens, scores, the rows they came from, with and without sampling."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.config import LlamaConfig
from llamita.generation.beam import BeamRunner, beam_steps, untouched
from llamita.generation.beam_search import BeamSearch, filler
from llamita.generation.outputs import ScoreRecorder
from llamita.model.llama import LlamaForCausalLM
from llamita.sampling.history import History
from llamita.sampling.params import SamplingParams
from llamita.sampling.sampler import LogitsProcessorList

END, PAD = 5, 3
MANY_ENDS = [11, 23, 42, 61, 77]


@pytest.fixture(scope="module")
def ours(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config.replace(initializer_range=0.2, bos_token_id=1, eos_token_id=END, pad_token_id=PAD)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def theirs(ours: LlamaForCausalLM) -> Any:
    return peers.twin(ours)


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(6, 97, (3, 7), generator=torch.Generator().manual_seed(1))


class Penalty:
    """A process of the text so far, under both calling conventions."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter_add(1, input_ids, torch.full(input_ids.shape, -0.7))

    def ours(self, scores: Tensor, history: History) -> Tensor:
        return self(history.input_ids, scores)


class Searched:
    """Our search run to its end: the search, its record, and what was streamed of every prompt."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor | None, process: Any = untouched, **settings: Any) -> None:
        use_cache = settings.pop("use_cache", True)
        self.search = BeamSearch(History.begin(ids, mask), **settings)
        self.record = ScoreRecorder(scores=True, logits=True)
        self.streamed: list[list[int]] = [[] for _ in ids]
        feed = BeamRunner(model, ids, attention_mask=mask, use_cache=use_cache)
        for step in beam_steps(feed, self.search, process=process, recorder=self.record):
            for text, new in zip(self.streamed, step, strict=True):
                text += new


CASES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": "never", "eos_token_id": MANY_ENDS},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.0, "eos_token_id": MANY_ENDS},
    {"num_beams": 4, "length_penalty": 2.5, "eos_token_id": MANY_ENDS, "num_return_sequences": 4},
    {"num_beams": 4, "length_penalty": -1.5, "early_stopping": True, "eos_token_id": MANY_ENDS},
    {"num_beams": 2, "eos_token_id": None, "num_return_sequences": 2},
    {"num_beams": 2, "use_cache": False, "eos_token_id": MANY_ENDS},
    {"num_beams": 3, "eos_token_id": MANY_ENDS, "pad_token_id": 0},
    {"num_beams": 2, "max_new_tokens": 1},
]


def check(ours: Any, theirs: Any, ids: Tensor, mask: Tensor, flags: dict[str, Any], *, penalty: bool = False) -> None:
    flags = {"max_new_tokens": 14, **flags}
    torch.manual_seed(9)
    processors = {"logits_processor": [Penalty()]} if penalty else {}
    asked = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True, "top_k": 0}
    reference = theirs.generate(ids, attention_mask=mask, **asked, **flags, **processors)
    beams, returned, limit = flags.pop("num_beams"), flags.pop("num_return_sequences", 1), flags.pop("max_new_tokens")
    eos = flags.pop("eos_token_id", END)
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    flags |= {"fill": filler(flags.pop("pad_token_id", PAD), eos), "eos_token_ids": eos}
    torch.manual_seed(9)
    process = Penalty().ours if penalty else untouched
    mine = Searched(ours, ids, mask, process, beams=beams, limit=limit, **flags)
    written, origins, scores = mine.search.best(returned)

    assert written.tolist() == reference.sequences[:, ids.shape[1] :].tolist()
    assert origins.tolist() == reference.beam_indices.tolist()
    torch.testing.assert_close(scores, reference.sequences_scores, rtol=1e-5, atol=1e-5)
    assert mine.record.scores is not None and mine.record.logits is not None
    torch.testing.assert_close(mine.record.scores, reference.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.record.logits, reference.logits, rtol=1e-4, atol=1e-4)
    for row, streamed in enumerate(mine.streamed):
        best = written[row * returned, : int((origins[row * returned] >= 0).sum())]
        assert streamed == best.tolist()
    for normalize in (False, True):
        arguments = (reference.sequences, reference.scores, reference.beam_indices, normalize)
        torch.testing.assert_close(
            ours.compute_transition_scores(*arguments), theirs.compute_transition_scores(*arguments)
        )


@pytest.mark.parametrize("flags", CASES, ids=str)
def test_beam_search(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, flags: dict[str, Any]) -> None:
    check(ours, theirs, prompt, torch.ones_like(prompt), flags)


@pytest.mark.parametrize("flags", CASES[:6], ids=str)
def test_beam_sampling(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, flags: dict[str, Any]) -> None:
    check(ours, theirs, prompt[:2], torch.ones_like(prompt[:2]), {**flags, "do_sample": True})


@pytest.mark.parametrize("do_sample", [False, True])
def test_left_padding_and_a_process(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, do_sample: bool) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0
    mask[2, :5] = 0
    ids = prompt.masked_fill(mask == 0, PAD)
    flags = {"num_beams": 3, "do_sample": do_sample, "num_return_sequences": 2, "eos_token_id": MANY_ENDS}
    check(ours, theirs, ids, mask, flags, penalty=True)


CHAINS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "bad_words_ids": [[7], [9, 10]], "suppress_tokens": [50, 51]},
    {"forced_eos_token_id": END},
    {"do_sample": True, "temperature": 0.6, "top_k": 9},
    {"do_sample": True, "top_p": 0.8, "top_k": 0, "repetition_penalty": 1.2},
    {"do_sample": True, "min_p": 0.1, "typical_p": 0.9, "top_k": 0},
    {"do_sample": True, "top_k": 1},
]


@pytest.mark.parametrize("eos", [[END], MANY_ENDS], ids=len)
@pytest.mark.parametrize("flags", CHAINS, ids=str)
def test_a_chain_of_settings(
    ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, flags: dict[str, Any], eos: list[int]
) -> None:
    asked = {"max_new_tokens": 12, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(1)
    reference = theirs.generate(prompt, **asked, eos_token_id=eos, **flags)
    chain = LogitsProcessorList(SamplingParams(**flags, eos_token_id=eos, num_beams=3, max_length=19), rows=9)
    torch.manual_seed(1)
    settings = {"eos_token_ids": eos, "do_sample": flags.get("do_sample", False), "fill": PAD}
    written, _, scores = Searched(ours, prompt, None, chain, beams=3, limit=12, **settings).search.best()
    assert written.tolist() == reference.sequences[:, 7:].tolist()
    torch.testing.assert_close(scores, reference.sequences_scores, rtol=1e-5, atol=1e-5)


def test_hidden_states(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor) -> None:
    asked = {"num_beams": 3, "return_dict_in_generate": True, "output_hidden_states": True}
    reference = theirs.generate(prompt, **asked, max_new_tokens=4)
    feed = BeamRunner(ours, prompt, recorded=("hidden_states",))
    search = BeamSearch(History.begin(prompt), beams=3, limit=4, eos_token_ids=[END])
    assert len(list(beam_steps(feed, search))) == len(reference.hidden_states)
    torch.testing.assert_close(tuple(feed.recorded["hidden_states"]), reference.hidden_states, rtol=1e-4, atol=1e-4)


def test_many_random_models(tiny_config: LlamaConfig) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        config = tiny_config.replace(initializer_range=0.3, num_hidden_layers=1, eos_token_id=END, pad_token_id=PAD)
        model = LlamaForCausalLM(config).eval()
        ids = torch.randint(6, 97, (2, 5))
        flags = {
            "num_beams": 2 + seed % 3,
            "length_penalty": seed - 2.0,
            "eos_token_id": MANY_ENDS,
            "max_new_tokens": 9,
        }
        check(model, peers.twin(model), ids, torch.ones_like(ids), {**flags, "early_stopping": (False, True)[seed % 2]})
