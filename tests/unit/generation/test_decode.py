"""Flags, checkpoint defaults, errors, and seeds through a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llamita.cache import DynamicCache, StaticCache
from llamita.config import LlamaConfig
from llamita.errors import UnsupportedError, UsageError
from llamita.generation.hf_flags import resolve
from llamita.model.llama import LlamaForCausalLM
from llamita.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module")
def model(tiny_config: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(tiny_config.replace(initializer_range=0.3, eos_token_id=None)).eval()


@pytest.fixture
def prompt() -> Tensor:
    return torch.randint(3, 97, (3, 7))


def test_a_seeded_row_does_not_depend_on_its_batch_mates(model: LlamaForCausalLM, prompt: Tensor) -> None:
    flags: dict[str, Any] = {"do_sample": True, "max_new_tokens": 20, "top_p": 0.9}
    together = model.generate(prompt, seed=[4, 5, 6], **flags)
    for row, seed in enumerate([4, 5, 6]):
        alone = model.generate(prompt[row : row + 1], seed=seed, **flags)
        assert alone[0].tolist() == together[row].tolist()


def test_settings_a_row(model: LlamaForCausalLM, prompt: Tensor) -> None:
    flags: dict[str, Any] = {"do_sample": True, "max_new_tokens": 8}
    greedy = model.generate(prompt, max_new_tokens=8)
    mixed = model.generate(prompt, temperature=[0.0, 1.5, 0.0], seed=1, **flags)
    assert mixed[[0, 2]].tolist() == greedy[[0, 2]].tolist()
    assert mixed[1].tolist() != greedy[1].tolist()


def test_the_checkpoint_gives_defaults_and_the_call_wins(tiny_config: LlamaConfig) -> None:
    checkpoint = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [3, 4], "max_length": None}
    options = resolve({"top_p": 0.5, "top_k": None}, checkpoint=checkpoint, config=tiny_config)
    assert (options.temperature, options.top_p, options.top_k, options.do_sample) == (0.6, 0.5, None, True)
    assert (options.eos_token_ids, options.padding, options.max_length) == ([3, 4], 3, None)
    assert resolve({}, checkpoint={}, config=tiny_config.replace(eos_token_id=[7, 8])).eos_token_ids == [7, 8]
    assert resolve({"eos_token_id": None}, checkpoint=checkpoint, config=tiny_config).eos_token_ids == []
    assert resolve({}, checkpoint={"pad_token_id": -1}, config=tiny_config).padding is None


def test_what_a_checkpoint_asks_in_vain_is_said(tiny_config: LlamaConfig) -> None:
    with pytest.warns(UserWarning, match="penalty_alpha"):
        resolve({}, checkpoint={"penalty_alpha": 1.1, "num_beam_groups": 1}, config=tiny_config)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"max_new_token": 3}, UsageError, "'max_new_tokens'"),
        ({"temprature": 3}, UsageError, "'temperature'"),
        ({"num_beam_groups": 4}, UnsupportedError, "leave it at 1"),
        ({"num_beams": 0}, UsageError, "num_beams is 0"),
        ({"num_return_sequences": 2}, UsageError, "repeat one greedy text"),
        ({"num_beams": 2, "prompt_lookup_num_tokens": 3}, UsageError, "exclude each other"),
        ({"cache_implementation": "paged"}, UsageError, "'paged' is unknown"),
        ({"max_new_tokens": 0}, UsageError, "leaves no room"),
        ({"max_length": 7}, UsageError, "7 tokens"),
        ({"stop_strings": "x"}, UsageError, "tokenizer="),
        ({"stop_strings": [""]}, UsageError, "empty"),
    ],
    ids=str,
)
def test_wrong_flags(model: LlamaForCausalLM, prompt: Tensor, flags: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        model.generate(prompt, **flags)


def test_flags_that_change_nothing_are_taken(model: LlamaForCausalLM, prompt: Tensor) -> None:
    plain = model.generate(prompt, max_new_tokens=4)
    assert torch.equal(model.generate(prompt, max_new_tokens=4, num_beams=1, repetition_penalty=1.0), plain)


@pytest.mark.parametrize("wrong", [torch.rand(1, 3), torch.ones(3, dtype=torch.long), torch.ones(1, 0).long()])
def test_wrong_inputs(model: LlamaForCausalLM, wrong: Tensor) -> None:
    with pytest.raises(UsageError, match="input_ids"):
        model.generate(wrong)


def test_a_cache_with_nothing_left_to_read(model: LlamaForCausalLM, prompt: Tensor) -> None:
    cache = DynamicCache()
    model(prompt, past_key_values=cache)
    with pytest.raises(UsageError, match="crop the cache"):
        model.generate(prompt, past_key_values=cache)


def test_a_static_cache_writes_the_same(model: LlamaForCausalLM, prompt: Tensor) -> None:
    cache = StaticCache(model.config, batch=3, capacity=20)
    written = model.generate(prompt, max_new_tokens=10, past_key_values=cache)
    assert written.tolist() == model.generate(prompt, max_new_tokens=10).tolist()


def test_stop_strings(small_path: Path) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(small_path), load_tokenizer(small_path)
    ids = torch.tensor([tokenizer.encode("abc")])
    whole = model.generate(ids, max_new_tokens=12, do_sample=True, seed=5)[0, 4:].tolist()
    text = tokenizer.decode(whole[4:6])
    stopped = model.generate(ids, max_new_tokens=12, do_sample=True, seed=5, stop_strings=text, tokenizer=tokenizer)
    assert stopped[0, 4:].tolist() == whole[:6]


def test_the_prefill_makes_logits_of_one_position_only(model: LlamaForCausalLM, prompt: Tensor) -> None:
    shapes: list[tuple[int, ...]] = []
    hook: Callable[..., None] = lambda module, inputs, output: shapes.append(tuple(output.shape))  # noqa: E731
    handle = model.lm_head.register_forward_hook(hook)
    model.generate(prompt, max_new_tokens=3)
    handle.remove()
    assert shapes == [(3, 1, 97)] * 3


def test_what_was_written_can_be_trained_on(model: LlamaForCausalLM, prompt: Tensor) -> None:
    written = model.generate(prompt, max_new_tokens=3)
    model.loss(written, written).backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()
