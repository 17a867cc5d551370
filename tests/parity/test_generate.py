"""What is written equals what transformers writes, token for token, greedily and under the same global seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.cache import DynamicCache
from llamita.config import LlamaConfig
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer

END, PAD = 5, 0

# transformers warns of its default length and of a length given twice.
pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")


@pytest.fixture(scope="module")
def ours(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = tiny_config.replace(initializer_range=0.3, bos_token_id=1, eos_token_id=END, pad_token_id=PAD)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def theirs(ours: LlamaForCausalLM) -> Any:
    return peers.twin(ours)


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(6, 97, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def left_padded(prompt: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(prompt)
    mask[1, :2] = 0
    mask[2, :5] = 0
    return prompt.masked_fill(mask == 0, PAD), mask


def both(ours: Any, theirs: Any, *args: Any, seed: int = 0, **flags: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    mine = ours.generate(*args, **flags)
    torch.manual_seed(seed)
    return mine, theirs.generate(*args, **flags)


GREEDY: list[dict[str, Any]] = [
    {"max_new_tokens": 20, "eos_token_id": None},
    {"max_new_tokens": 30},
    {"max_new_tokens": 30, "eos_token_id": [11, 23, 42, 61]},
    {"max_new_tokens": 30, "eos_token_id": list(range(10, 60, 3)), "pad_token_id": 3},
    {"max_new_tokens": 12, "use_cache": False},
    {"max_length": 19},
    {"max_length": 30, "max_new_tokens": 2},
    {},
]


@pytest.mark.parametrize("flags", GREEDY, ids=str)
def test_greedy(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, flags: dict[str, Any]) -> None:
    mine, reference = both(ours, theirs, prompt, **flags)
    assert mine.tolist() == reference.tolist()


SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_k": None, "top_p": None, "temperature": None},
    {"top_p": 0.5, "top_k": 0},
    {"top_p": 0.0, "top_k": 0},
    {"top_p": 0.93, "top_k": 20, "temperature": 1.3},
    {"temperature": 0.3, "top_p": 0.9, "eos_token_id": list(range(10, 60, 5))},
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("flags", SAMPLING, ids=str)
def test_sampling(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor, flags: dict[str, Any], seed: int) -> None:
    mine, reference = both(ours, theirs, prompt, seed=seed, do_sample=True, max_new_tokens=25, **flags)
    assert mine.tolist() == reference.tolist()


@pytest.mark.parametrize("flags", [{}, {"do_sample": True, "top_p": 0.9}], ids=str)
def test_left_padding(
    ours: LlamaForCausalLM, theirs: Any, left_padded: tuple[Tensor, Tensor], flags: dict[str, Any]
) -> None:
    ids, mask = left_padded
    given = both(ours, theirs, ids, attention_mask=mask, max_new_tokens=20, **flags)
    guessed = both(ours, theirs, ids, max_new_tokens=20, **flags)
    assert given[0].tolist() == given[1].tolist()
    assert guessed[0].tolist() == guessed[1].tolist() == given[0].tolist()


def test_left_padding_does_not_change_a_row(ours: LlamaForCausalLM, left_padded: tuple[Tensor, Tensor]) -> None:
    ids, mask = left_padded
    together = ours.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=None)
    alone = ours.generate(ids[2:, 5:], max_new_tokens=12, eos_token_id=None)
    assert together[2, 5:].tolist() == alone[0].tolist()


def test_embeddings(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor) -> None:
    embeds = ours.get_input_embeddings()(prompt).detach()
    for flags in ({"max_new_tokens": 9}, {"max_length": 15}, {}):
        mine, reference = both(ours, theirs, inputs_embeds=embeds, **flags)
        assert mine.tolist() == reference.tolist()
    mine, reference = both(ours, theirs, prompt, inputs_embeds=embeds, max_length=15)
    assert mine.tolist() == reference.tolist()
    uncached = ours.generate(inputs_embeds=embeds, max_new_tokens=9, use_cache=False)
    assert uncached.tolist() == ours.generate(inputs_embeds=embeds, max_new_tokens=9).tolist()


def test_nothing_given_starts_from_the_first_token(ours: LlamaForCausalLM, theirs: Any) -> None:
    mine, reference = both(ours, theirs, max_new_tokens=9)
    assert mine.tolist() == reference.tolist()


def test_default_length_ends_with_the_context(ours: LlamaForCausalLM, theirs: Any) -> None:
    long = torch.randint(6, 97, (1, 60))
    mine, reference = both(ours, theirs, long, eos_token_id=None)
    assert mine.shape == (1, 64)
    assert mine.tolist() == reference.tolist()


def test_going_on_from_a_cache(ours: LlamaForCausalLM, prompt: Tensor) -> None:
    whole = ours.generate(prompt, max_new_tokens=12, eos_token_id=None)
    cache = DynamicCache()
    first = ours.generate(prompt, max_new_tokens=5, eos_token_id=None, past_key_values=cache)
    assert cache.length == 11  # the last token was not read
    rest = ours.generate(first, max_new_tokens=7, eos_token_id=None, past_key_values=cache)
    assert rest.tolist() == whole.tolist()


def test_going_on_with_the_new_part_only(ours: LlamaForCausalLM, prompt: Tensor) -> None:
    cache = DynamicCache()
    ours(prompt[:, :4], past_key_values=cache)
    rest = ours.generate(prompt[:, 4:], attention_mask=torch.ones_like(prompt), past_key_values=cache, max_new_tokens=6)
    assert rest[:, 3:].tolist() == ours.generate(prompt, max_new_tokens=6)[:, 7:].tolist()


def test_streamers_hear_the_same(ours: LlamaForCausalLM, theirs: Any, prompt: Tensor) -> None:
    class Ear:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def put(self, value: Tensor) -> None:
            self.heard.append(value.tolist())

        def end(self) -> None:
            self.heard.append("end")

    mine, reference = Ear(), Ear()
    ours.generate(prompt, max_new_tokens=6, streamer=mine)
    theirs.generate(prompt, max_new_tokens=6, streamer=reference)
    assert mine.heard == reference.heard


def test_stop_strings(small_path: Path) -> None:
    ours = LlamaForCausalLM.from_pretrained(small_path)
    theirs = peers.load(small_path, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = load_tokenizer(small_path)
    reference = peers.library().AutoTokenizer.from_pretrained(str(small_path))
    prompt = torch.tensor([tokenizer.encode(text) for text in ("ab", "cd", "ef")])
    many = prompt.repeat_interleave(10, 0)
    whole = ours.generate(many, do_sample=True, max_new_tokens=9, seed=list(range(30)))[:, 3:]
    stops = [text for row in whole.tolist() if (text := tokenizer.decode(row[6:8])).isascii() and text][:4]
    assert stops
    for seed in range(4):
        flags: dict[str, Any] = {"do_sample": True, "max_new_tokens": 60, "stop_strings": [*stops, "a", "the"]}
        torch.manual_seed(seed)
        mine = ours.generate(prompt, tokenizer=tokenizer, **flags)
        torch.manual_seed(seed)
        assert mine.tolist() == theirs.generate(prompt, tokenizer=reference, **flags).tolist()
