"""Same question, same answer: the logits of a token do not depend on what else runs, nor on what was read before."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import llamita
from llamita.cache.growing import GrowingCache
from llamita.cache.paged import PagedCache
from llamita.cache.saved import load, save
from llamita.checkpoint.load import Loaded
from llamita.config import LlamaConfig
from llamita.context.batch import BatchLayout
from llamita.llm import LLM
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse
from llamita.plans.cpu.passes import ModelParts, Pass
from llamita.plans.cpu.workspace import Workspace
from llamita.quant.surgery import quantize

# What the weights are: a dtype of a random model, or a format of a random one that fits its blocks; and cria.
RANDOM = ["float32", "bfloat16", "float16", "q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4"]
CRIA = ["bfloat16", "q8_0", "q4_0", "q4_k"]
MOST = 150  # tokens of a text: three blocks of keys


@cache
def cria(form: str) -> Loaded:
    """The embedded model, loaded once for all tests of a format."""
    llm = llamita.load(quantize=None if form == "bfloat16" else form)
    return Loaded(llm.model, llm.tokenizer, llm.name, Path())


@cache
def model_of(form: str, *, is_cria: bool = False) -> LlamaForCausalLM:
    """A model with kernels: a random one of odd sizes, or cria."""
    if is_cria:
        return cria(form).model
    torch.manual_seed(3)
    is_plain = form in dir(torch)
    config = LlamaConfig(
        vocab_size=101, hidden_size=90 if is_plain else 256, intermediate_size=154 if is_plain else 512,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=48 if is_plain else 128 // 2,
        sliding_window=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.to(getattr(torch, form) if is_plain else torch.bfloat16)
    if not is_plain:
        quantize(model, form)
    return fuse(model)


def text_of(model: LlamaForCausalLM, length: int, seed: int) -> Tensor:
    """A random text (1, T)."""
    return torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def read(model: LlamaForCausalLM, ids: Tensor, cuts: list[int], cache: GrowingCache | None = None) -> Tensor:
    """The logits (B, T, V) of ids (B, T), read in pieces behind what the cache holds."""
    cache = GrowingCache() if cache is None else cache
    ends = sorted({cut for cut in cuts if 0 < cut < ids.shape[1]} | {ids.shape[1]})
    starts = [0, *ends[:-1]]
    return torch.cat([model(ids[:, a:b], past_key_values=cache).logits for a, b in zip(starts, ends, strict=True)], 1)


def beside(model: LlamaForCausalLM, ids: Tensor, lengths: list[int], row: int, cuts: list[int]) -> Tensor:
    """The logits of ids (1, T) as one row of a batch with other texts, padded on the left."""
    lengths = [*lengths[:row], ids.shape[1], *lengths[row:]]
    longest = max(lengths)
    batch, mask = (torch.zeros(len(lengths), longest, dtype=torch.long) for _ in "im")
    for i, length in enumerate(lengths):
        batch[i, longest - length :] = ids[0] if i == row else text_of(model, length, i)[0]
        mask[i, longest - length :] = 1
    cache, logits, start = GrowingCache(), [], 0
    for end in sorted({cut for cut in cuts if 0 < cut < longest} | {longest}):
        out = model(batch[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        logits.append(out.logits[row])
        start = end
    return torch.cat(logits)[None, longest - ids.shape[1] :]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """No gradients, and one thread again afterwards."""
    with torch.inference_mode():
        yield
    torch.set_num_threads(1)


MODELS = [(form, False) for form in RANDOM] + [(form, True) for form in CRIA]


@pytest.mark.parametrize(("form", "is_cria"), MODELS, ids=[f"{f}{'-cria' * c}" for f, c in MODELS])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_logits_are_the_same_however_a_text_is_read(form: str, is_cria: bool, data: st.DataObject) -> None:
    model = model_of(form, is_cria=is_cria)
    ids = text_of(model, data.draw(st.integers(2, MOST)), data.draw(st.integers(0, 99)))
    length = ids.shape[1]
    whole = read(model, ids, [])
    cuts = data.draw(st.lists(st.integers(1, length), max_size=5))
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    assert torch.equal(read(model, ids, cuts), whole)
    others = data.draw(st.lists(st.integers(1, MOST), min_size=1, max_size=6))
    row = data.draw(st.integers(0, len(others)))
    assert torch.equal(beside(model, ids, others, row, cuts), whole)
    warm = GrowingCache()  # has read another text that begins alike, and is cropped
    kept = data.draw(st.integers(0, length - 1))
    read(model, torch.cat((ids[:, :kept], text_of(model, 9, 7)), 1), [], warm)
    warm.crop(kept)
    assert torch.equal(read(model, ids[:, kept:], cuts, warm), whole[:, kept:])


@pytest.mark.parametrize(("form", "is_cria"), MODELS, ids=[f"{f}{'-cria' * c}" for f, c in MODELS])
def test_logits_are_the_same_token_by_token_and_among_many(form: str, is_cria: bool) -> None:
    model = model_of(form, is_cria=is_cria)
    ids = text_of(model, 70, 1)
    whole = read(model, ids, [])
    assert torch.equal(read(model, ids, list(range(1, 70))), whole)
    lengths = [1 + 37 * i % 70 for i in range(32)]
    assert torch.equal(beside(model, ids, lengths, 17, [69]), whole)


@pytest.mark.parametrize("form", ["bfloat16", "q8_0"])
def test_logits_are_the_same_from_a_forked_and_a_saved_cache(form: str) -> None:
    model = model_of(form)
    ids = text_of(model, 80, 2)
    whole, cache = read(model, ids, []), GrowingCache()
    read(model, ids[:, :70], [], cache)
    fork = cache.fork()
    assert torch.equal(read(model, ids[:, 70:], [71], fork), whole[:, 70:])
    with TemporaryDirectory() as folder:
        save(cache, Path(folder) / "cache.safetensors", fingerprint="")
        loaded = load(Path(folder) / "cache.safetensors", fingerprint="")
    assert isinstance(loaded, GrowingCache)
    assert torch.equal(read(model, ids[:, 70:], [], loaded), whole[:, 70:])


@pytest.mark.parametrize("page", [4, 16, 64])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "q8_0"])
def test_logits_are_the_same_from_pages_in_any_order(form: str, page: int) -> None:
    model = model_of(form)
    ids, config = text_of(model, 130, 3), model.config
    whole, cache, logits = read(model, ids, []), GrowingCache(), []
    heads = config.num_key_value_heads
    cache.begin(config.num_hidden_layers, batch=1, heads=heads, width=config.head_dim, dtype=model.dtype)
    table = torch.randperm(256 // page, generator=torch.Generator().manual_seed(page))  # of all of its slots
    blocks = PagedCache(config, num_blocks=256 // page, block_size=page, dtype=model.dtype, device="cpu")
    start, from_blocks = 0, []
    for part in ids.split([100, 1, 20, 9], dim=1):
        made = Pass(ModelParts.of(model), Workspace(), part.numel(), dtype=model.dtype)
        layout = BatchLayout(start, 0, table.numpy(), 0, page)
        cache.reserve(part.shape[1])
        logits.append(made.run(part, cache.buffers, [layout], range(part.numel()))[None])
        layout = replace(layout, is_blocked=True, is_tiled=blocks.is_tiled)
        from_blocks.append(made.run(part, blocks.buffers, [layout], range(part.numel()))[None])
        start = start + part.shape[1]
    assert torch.equal(torch.cat(logits, dim=1), whole)
    assert torch.equal(torch.cat(from_blocks, dim=1), whole)


PROMPTS = ["Once upon a time", "2 + 3 =", "The dog ran. The dog ran. The dog", "A", "Tom had a red ball and a"]
WAYS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.9, "top_p": 0.9},
    "penalised": {"temperature": 0.7, "repetition_penalty": 1.2, "min_p": 0.05},
    "constrained": {"temperature": 0.8, "regex": "[a-z ,]{5,40}[.]"},
    "logprobs": {"temperature": 0, "logprobs": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", CRIA)
def test_texts_are_the_same_alone_in_a_batch_and_while_guessing(form: str, way: str) -> None:
    llm = LLM(cria(form))  # which has no prefix yet
    options = {"max_tokens": 24, **WAYS[way]}
    alone = [llm.generate(prompt, seed=i, **options) for i, prompt in enumerate(PROMPTS)]
    seeds = list(range(len(PROMPTS)))
    together = llm.generate(PROMPTS, seed=seeds, **options)
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.logprobs for one in together] == [one.logprobs for one in alone]
    again = llm.generate(PROMPTS[2], seed=2, **options)  # behind a prefix that the cache may hold
    assert again.text == alone[2].text
    if way == "greedy":
        guessed = [llm.generate(prompt, prompt_lookup_num_tokens=3, **options) for prompt in PROMPTS]
        assert [one.text for one in guessed] == [one.text for one in alone]
        assert [one.text for one in llm.generate(PROMPTS, prompt_lookup_num_tokens=3, **options)] == [
            one.text for one in alone
        ]
