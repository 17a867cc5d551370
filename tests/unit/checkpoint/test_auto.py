"""transformers' doors: what opens behind them, and what they do not know."""

from pathlib import Path

import pytest
import torch

import llamita
from llamita import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from llamita.checkpoint.gguf_save import save_gguf
from llamita.errors import NotFoundError, UnsupportedError, UsageError


def test_doors_open_what_llamita_has(small_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_path, torch_dtype=torch.bfloat16, device_map="auto")
    assert type(model) is LlamaForCausalLM
    assert model.dtype == torch.bfloat16
    config = AutoConfig.from_pretrained(small_path, use_cache=False)
    assert config == LlamaConfig.from_pretrained(small_path).replace(use_cache=False)
    made = AutoModelForCausalLM.from_config(config, torch_dtype="bfloat16", attn_implementation="eager")
    assert (made.dtype, made.config.attn_implementation) == (torch.bfloat16, "eager")
    tokenizer = AutoTokenizer.from_pretrained(small_path, use_fast=True, trust_remote_code=False)
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
    assert AutoTokenizer.from_pretrained("cria").encode("Hello") == llamita.load().tokenizer.encode("Hello")
    inside = AutoTokenizer.from_pretrained(small_path.parent, subfolder=small_path.name)
    assert inside.encode("Hello") == tokenizer.encode("Hello")


def test_a_gguf_file_has_a_tokenizer_too(small_path: Path, tmp_path: Path) -> None:
    loaded = llamita.load(small_path)
    save_gguf(loaded.model, loaded.tokenizer, tmp_path / "small.gguf", None)
    assert AutoTokenizer.from_pretrained(tmp_path / "small.gguf").encode("Hello") == loaded.tokenizer.encode("Hello")


def test_doors_say_what_they_do_not_do(small_path: Path) -> None:
    for door in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        with pytest.raises(
            UsageError, match=rf"^{door.__name__} makes nothing by itself: call .*from_pretrained\(name\)"
        ):
            door(small_path)
        with pytest.raises(UnsupportedError, match=r"^trust_remote_code is not for llamita: llamita runs no code"):
            door.from_pretrained(small_path, trust_remote_code=True)
        with pytest.raises(NotFoundError):
            door.from_pretrained(small_path / "absent")
    with pytest.raises(UsageError, match=r"^AutoTokenizer\.from_pretrained knows no 'padding_side': leave it out"):
        AutoTokenizer.from_pretrained(small_path, padding_side="left")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("LlamaTokenizerFast", "use AutoTokenizer.from_pretrained(name)"),
        ("pipeline", "use transformers.pipeline with a model of llamita's"),
        ("LlamaForCasualLM", "did you mean 'LlamaForCausalLM'?"),
        ("lod", "did you mean 'load'?"),
    ],
)
def test_missing_names_are_hinted_at(name: str, advice: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(llamita, name)
    assert str(raised.value).startswith(f"module 'llamita' has no attribute {name!r}: {advice}")
