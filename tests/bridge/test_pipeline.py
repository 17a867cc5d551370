"""transformers.pipeline writes with our model what it writes with transformers' own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llamita import LlamaForCausalLM

CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def pipes(small_path: Path) -> tuple[Any, Any]:
    """A pipeline of our model, and one of transformers' model of the same weights."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_path)
    models = (LlamaForCausalLM.from_pretrained(small_path), transformers.LlamaForCausalLM.from_pretrained(small_path))
    ours, theirs = (
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu") for model in models
    )
    return ours, theirs


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Once", {"do_sample": False, "max_new_tokens": 6}),
        ("Once", {"do_sample": False, "max_new_tokens": 6, "return_full_text": False}),
        ("Once", {"do_sample": False, "max_new_tokens": 6, "return_tensors": True}),
        ("Once", {"max_new_tokens": 9}),
        ("Once", {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9}),
        ("Once", {"max_new_tokens": 4, "num_return_sequences": 3}),
        ("Once", {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}),
        ("Once", {"max_length": 12, "do_sample": False}),
        ("Once", {"generation_config": transformers.GenerationConfig(max_new_tokens=3, do_sample=False)}),
        (["Once", "upon a time", "x"], {"do_sample": False, "max_new_tokens": 5}),
        (["Once", "upon a time", "x"], {"do_sample": False, "max_new_tokens": 5, "batch_size": 3}),
        (["Once", "upon a time", "x"], {"max_new_tokens": 5, "batch_size": 2}),
        (CHAT, {"do_sample": False, "max_new_tokens": 5}),
        (CHAT, {"do_sample": False, "max_new_tokens": 5, "return_full_text": False}),
        ([CHAT, CHAT], {"do_sample": False, "max_new_tokens": 5, "batch_size": 2}),
    ],
)
def test_the_same_text(pipes: tuple[Any, Any], prompt: Any, options: dict[str, Any]) -> None:
    written = []
    for pipe in pipes:
        torch.manual_seed(3)
        written.append(pipe(prompt, **options))
    assert written[0] == written[1]


def test_a_pipeline_shows_and_saves_itself(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    ours, theirs = pipes
    assert repr(ours) == repr(theirs)
    ours.save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path).lm_head.weight, theirs.model.lm_head.weight)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).decode([72]) == ours.tokenizer.decode([72])
