"""Under one torch.manual_seed, texts drawn with guesses ahead are transformers', random number for random number."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer

ENDS = [11, 23]
FLAGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_k": 0},
    {"temperature": 1.4, "top_k": 5},
    {"top_p": 0.8, "top_k": None},
    {"min_p": 0.05, "repetition_penalty": 1.3},
    {"typical_p": 0.7, "epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02, "top_h": 0.6},
    {"no_repeat_ngram_size": 2, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    {"bad_words_ids": [[5], [7, 8], [60]], "suppress_tokens": list(range(30, 40))},
    {"min_new_tokens": 10, "eos_token_id": list(range(3, 97, 7))},
    {"min_length": 20, "eos_token_id": list(range(3, 97, 7)), "max_length": 27},
    {"eos_token_id": None, "renormalize_logits": True},
    {"eos_token_id": 5, "exponential_decay_length_penalty": (5, 1.3)},
    {"sequence_bias": [[[5], 3.0], [[7, 8], -4.0]], "forced_eos_token_id": 11},
    {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    {"watermarking_config": {"bias": 2.5, "greenlist_ratio": 0.4}, "max_new_tokens": 1},
]


class Pair(NamedTuple):
    """One model, ours and transformers'."""

    ours: LlamaForCausalLM
    theirs: Any


def paired(model: LlamaForCausalLM) -> Pair:
    return Pair(model.eval(), peers.twin(model.eval()))


@pytest.fixture(scope="module")
def config(tiny_config: LlamaConfig) -> LlamaConfig:
    return tiny_config.replace(initializer_range=0.2, bos_token_id=1, eos_token_id=ENDS, pad_token_id=0)


@pytest.fixture(scope="module")
def target(config: LlamaConfig) -> Pair:
    torch.manual_seed(3)
    return paired(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def near(target: Pair) -> Pair:
    """A model that guesses the target in part: the same weights and some noise."""
    model, noise = deepcopy(target.ours), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise) * weight.std() / 4)
    return paired(model)


@pytest.fixture(scope="module")
def shallow(config: LlamaConfig) -> Pair:
    """A model of one layer, for what looks at texts alone."""
    torch.manual_seed(3)
    return paired(LlamaForCausalLM(config.replace(num_hidden_layers=1)))


@pytest.fixture(scope="module")
def looping(config: LlamaConfig) -> Pair:
    """A model of one layer that looks at little but the last token, and so repeats itself."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(config.replace(initializer_range=0.5, num_hidden_layers=1))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.01)
    return paired(model)


def prompt(seed: int) -> Tensor:
    ids = torch.randint(1, 97, (1, 9), generator=torch.Generator().manual_seed(seed))
    return torch.cat((ids, ids[:, 2:6]), dim=1)


def drawn(pair: Pair, helper: dict[str, Any], flags: dict[str, Any], *, seed: int) -> tuple[Any, Any]:
    """What both draw, and the state that the random numbers are in afterwards."""
    settings = {"do_sample": True, "max_new_tokens": 16, "return_dict_in_generate": True, "output_scores": True}
    settings |= {"output_logits": True, "pad_token_id": 0, **flags}
    if "max_length" in flags:
        del settings["max_new_tokens"]
    found = []
    pair.theirs.generation_config.assistant_early_exit = None  # which transformers leaves set
    for number, model in enumerate(pair):
        one = {name: value[number] if isinstance(value, Pair) else value for name, value in helper.items()}
        if number and "watermarking_config" in flags:
            config = peers.library().WatermarkingConfig(**flags["watermarking_config"])
            settings = {**settings, "watermarking_config": config}
        torch.manual_seed(seed)
        out = model.generate(prompt(seed), **settings, **one)
        found.append((out, torch.get_rng_state()))
    (mine, my_state), (theirs, their_state) = found
    assert mine.sequences.tolist() == theirs.sequences.tolist(), (helper.keys(), flags, seed)
    assert torch.equal(my_state, their_state)
    return mine, theirs


def helpers(target: Pair, near: Pair) -> Iterator[dict[str, Any]]:
    yield {"assistant_model": near}
    yield {"assistant_model": target}
    yield {"assistant_early_exit": 1}
    yield {"assistant_early_exit": 2}


@pytest.mark.parametrize(("number", "flags"), [*enumerate(FLAGS)], ids=str)
def test_a_model_guesses(target: Pair, near: Pair, number: int, flags: dict[str, Any]) -> None:
    """By two of the four that guess, each time others: each of them meets every second of the flags."""
    every = list(enumerate(helpers(target, near)))
    for seed, helper in (every[number % 4], every[(number + 1) % 4]):
        mine, theirs = drawn(target, helper, flags, seed=seed)
        for name in ("scores", "logits"):
            assert len(mine[name]) == len(theirs[name]) == mine.sequences.shape[1] - 13
            for a, b in zip(mine[name], theirs[name], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


LOOKUPS = [*product([(5, None), (10, 3), (2, 1)], (False, True), (0, 10))]


@pytest.mark.parametrize(("number", "flags"), [*enumerate(FLAGS)], ids=str)
def test_prompt_lookup(shallow: Pair, looping: Pair, number: int, flags: dict[str, Any]) -> None:
    """By two of the ways to look up, each time others: each way meets two or three of the flags, and others colder."""
    for seed, ((length, ngram), loops, further) in list(enumerate(LOOKUPS))[number % 6 :: 6]:
        helper = {"prompt_lookup_num_tokens": length, "max_matching_ngram_size": ngram}
        cold = {"temperature": 0.3} if further else {}
        drawn(looping if loops else shallow, helper, {**cold, **flags}, seed=seed // 4 + further)


def test_guesses_are_accepted_in_part(target: Pair, near: Pair, looping: Pair) -> None:
    """What the other tests compare is worth comparing."""
    for helper in helpers(target, near):
        accepted = [drawn(target, helper, {"max_new_tokens": 30}, seed=seed)[0].acceptance for seed in range(2)]
        assert 0.1 < sum(one.accepted for one in accepted) / sum(one.drafted for one in accepted) <= 1
        assert max(one.tokens_per_pass for one in accepted) > 1.2
    lookup = drawn(looping, {"prompt_lookup_num_tokens": 4}, {"temperature": 0.3, "max_new_tokens": 60}, seed=1)
    assert 0.1 < lookup[0].acceptance.rate < 1


def test_the_assistants_habits_are_its_own(target: Pair, near: Pair) -> None:
    for tokens, confidence in ((1, 0.4), (3, 0.0), (7, 0.9), (20, 0.2)):
        pair, helper = Pair(*map(deepcopy, target)), Pair(*map(deepcopy, near))
        for model in (*pair, *helper):
            model.generation_config.num_assistant_tokens = tokens
            model.generation_config.assistant_confidence_threshold = confidence
        for seed, by in enumerate([{"assistant_model": helper}, {"assistant_early_exit": 1}]):
            acceptance = drawn(pair, by, {}, seed=seed)[0].acceptance
            assert acceptance.drafted <= tokens * acceptance.passes
        # The target's are not the assistant's.
        drawn(pair, {"assistant_model": near}, {}, seed=2)


def test_the_calls_habits_come_first(target: Pair, near: Pair) -> None:
    flags = {"do_sample": True, "max_new_tokens": 20, "return_dict_in_generate": True, "assistant_model": near.ours}
    few = target.ours.generate(prompt(0), num_assistant_tokens=2, assistant_confidence_threshold=0.0, **flags)
    assert few.acceptance.drafted in range(2 * few.acceptance.passes - 3, 2 * few.acceptance.passes + 1)


def test_padding(target: Pair, near: Pair) -> None:
    """Padding in the prompt, and a padding token that is drawn: transformers hides both from the assistant."""
    mask = torch.ones(1, 13, dtype=torch.long)
    mask[:, :4] = 0
    often = {"sequence_bias": [[[0], 4.0]]}
    for helper in helpers(target, near):
        for flags in (
            {"attention_mask": mask},
            often,
            {"attention_mask": mask, **often},
            {"attention_mask": mask * 0 + 1},
        ):
            mine, _ = drawn(target, helper, flags, seed=3)
            assert flags.keys() == {"attention_mask"} or 0 in mine.sequences[0, 13:]


def test_the_first_of_several_guesses(target: Pair, near: Pair) -> None:
    drawn(target, {"assistant_model": near, "prompt_lookup_num_tokens": 3}, {}, seed=1)
    drawn(target, {"assistant_model": near, "assistant_early_exit": 2}, {}, seed=1)


def test_stop_strings_end_where_they_stand(small_path: Path) -> None:
    """transformers looks for them only where a round ends, and there the texts are equal."""
    pair = Pair(
        LlamaForCausalLM.from_pretrained(small_path),
        peers.load(small_path, dtype=torch.float32, attn_implementation="sdpa"),
    )
    tokenizers = load_tokenizer(small_path), peers.library().AutoTokenizer.from_pretrained(str(small_path))
    ids = torch.tensor([tokenizers[0].encode("abcabcab")])
    flags = {"do_sample": True, "top_k": 8, "stop_strings": ["a", "e", "i", "the"], "prompt_lookup_num_tokens": 4}
    ended = 0
    for seed in (0, 3, 7, 10, 11):  # of twelve, those that a stop string ends within 40 tokens, and one more
        texts = []
        for model, tokenizer in zip(pair, tokenizers, strict=True):
            torch.manual_seed(seed)
            texts.append(model.generate(ids, max_new_tokens=40, tokenizer=tokenizer, **flags)[0].tolist())
        assert texts[0] == texts[1][: len(texts[0])]
        ended += len(texts[0]) < ids.shape[1] + 40
    assert ended > 1


def test_streaming(target: Pair, near: Pair) -> None:
    class Ear(list):
        def put(self, value: Tensor) -> None:
            self.extend(value.flatten().tolist())

        def end(self) -> None:
            self.append("end")

    heard, flags = Ear(), {"do_sample": True, "max_new_tokens": 20}
    torch.manual_seed(1)
    told = target.ours.generate(prompt(1), streamer=heard, assistant_model=near.ours, **flags)
    assert heard == [*told[0].tolist(), "end"]
    torch.manual_seed(1)
    assert told.tolist() == target.theirs.generate(prompt(1), assistant_model=near.theirs, **flags).tolist()


def test_a_processor_of_the_user(target: Pair, near: Pair) -> None:
    def never_twice(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, ids[:, -1:], -torch.inf)

    processors = [never_twice]
    drawn(target, {"assistant_model": near}, {"logits_processor": processors}, seed=4)
    drawn(target, {"prompt_lookup_num_tokens": 4}, {"logits_processor": processors, "top_k": 0}, seed=4)
