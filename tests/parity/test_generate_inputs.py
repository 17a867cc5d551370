"""What a call of forward and generate may be handed beside token ids: caches of transformers, positions, tokenizers."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamita.bridge import transformers as peers
from llamita.cache import DynamicCache
from llamita.config import LlamaConfig
from llamita.errors import LlamitaError, UnsupportedError, UsageError
from llamita.model.heads import LlamaForSequenceClassification
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse
from llamita.tokenizer.load import load_tokenizer

Pair = tuple[LlamaForCausalLM, Any]
WAYS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 2},
    {"num_beams": 3},
    {"use_cache": False},
    {"prefill_chunk_size": 3},
]


@pytest.fixture(scope="module")
def pair(tiny_config: LlamaConfig) -> Pair:
    torch.manual_seed(5)
    ours = LlamaForCausalLM(tiny_config.replace(initializer_range=0.3, eos_token_id=None, pad_token_id=0)).eval()
    return ours, peers.twin(ours)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(1))


def both(pair: Pair, *args: Any, **flags: Any) -> tuple[Any, Any]:
    results = []
    for model in pair:
        torch.manual_seed(11)
        given = {name: value() if callable(value) else value for name, value in flags.items()}
        results.append(model.generate(*args, **{"max_new_tokens": 6, "pad_token_id": 0, **given}))
    return results[0], results[1]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_position_ids(pair: Pair, ids: Tensor, way: dict[str, Any]) -> None:
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    plain = pair[0].generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=way.get("num_beams", 1))
    for positions in (torch.arange(7)[None] * 2 + 5, torch.tensor([[3], [2]]) * torch.arange(7)):
        flags: dict[str, Any] = {"attention_mask": mask, **way}
        ours, theirs = both(pair, ids, position_ids=positions.expand(2, -1), **flags)
        assert ours.tolist() == theirs.tolist() != plain.tolist()
        torch.manual_seed(11)
        assert pair[0].generate(ids, position_ids=positions, max_new_tokens=6, **flags).tolist() == ours.tolist()


@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([-1])], ids=str)
def test_logits_to_keep(pair: Pair, ids: Tensor, kept: Any) -> None:
    flags: dict[str, Any] = {"logits_to_keep": kept, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = both(pair, ids, **flags)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.parametrize("kept", ["a", 1.5, [0], (1,), slice(-2, None)], ids=str)
def test_what_is_no_position_to_keep_is_refused(pair: Pair, ids: Tensor, kept: Any) -> None:
    for call in (pair[0], pair[0].generate):
        with pytest.raises(UsageError, match=rf"logits_to_keep is a {type(kept).__name__}, not a tensor"):
            call(ids, logits_to_keep=kept)
    with pytest.raises(UsageError, match="logits_to_keep is -1: it must be 0 or above"):
        pair[0].generate(ids, logits_to_keep=-1)


def test_numbers_of_numpy_and_torch_are_numbers(pair: Pair, ids: Tensor) -> None:
    plain = {"max_new_tokens": 4, "eos_token_id": [17, 18], "suppress_tokens": [3, 4], "min_new_tokens": 2}
    flags = {name: np.asarray(value)[()] for name, value in plain.items()} | {"eos_token_id": torch.tensor([17, 18])}
    assert pair[0].generate(ids, **flags).tolist() == pair[0].generate(ids, **plain).tolist()
    ours, theirs = both(pair, ids, do_sample=True, temperature=np.float64(0.7), num_return_sequences=np.int64(2))
    assert ours.tolist() == theirs.tolist()


def test_what_guessing_ahead_does_not_take(pair: Pair, ids: Tensor) -> None:
    positions = torch.arange(7)[None]
    for flags in ({"position_ids": positions}, {"logits_to_keep": 0}):
        with pytest.raises(UnsupportedError, match="leave position_ids and logits_to_keep out"):
            pair[0].generate(ids[:1], prompt_lookup_num_tokens=2, **flags)
    with pytest.raises(UsageError, match=r"position_ids is \(3, 2\)"):
        pair[0].generate(ids, position_ids=torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(UsageError, match="token id 97 is outside the vocabulary of 97"):
        pair[0].generate(ids.clamp(min=97))


def test_embeddings_and_a_cache(pair: Pair, ids: Tensor) -> None:
    embeds = pair[0].get_input_embeddings()(ids).detach()
    caches = []
    for model, cache in zip(pair, (DynamicCache(), peers.library().DynamicCache()), strict=True):
        with torch.no_grad():
            model(inputs_embeds=embeds[:, :4], past_key_values=cache, use_cache=True)
        caches.append(cache)
    ways: list[dict[str, Any]] = [{}, {"do_sample": True}]
    for way in ways:
        results = []
        for model, cache in zip(pair, caches, strict=True):
            torch.manual_seed(3)
            copies = cache.fork() if isinstance(cache, DynamicCache) else deepcopy(cache)
            results.append(model.generate(inputs_embeds=embeds, past_key_values=copies, max_new_tokens=5, **way))
        assert results[0].tolist() == results[1].tolist()
    new, mask = embeds[:, 4:], torch.ones_like(ids)
    again = pair[0].generate(inputs_embeds=new, attention_mask=mask, past_key_values=caches[0], max_new_tokens=5)
    assert again.tolist() == pair[0].generate(inputs_embeds=embeds, max_new_tokens=5).tolist()
    with pytest.raises(UsageError, match="the cache already holds 11 tokens and the input has 7"):
        pair[0].generate(inputs_embeds=embeds, past_key_values=caches[0])


def foreign(name: str, pair: Pair) -> Any:
    library = peers.library()
    if name == "StaticCache":
        return library.StaticCache(config=pair[1].config, max_cache_len=20)
    return library.DynamicCache(config=pair[1].config) if name == "DynamicCache(config)" else library.DynamicCache()


@pytest.mark.parametrize("name", ["DynamicCache", "DynamicCache(config)", "StaticCache"])
def test_caches_of_transformers_in_forward(pair: Pair, ids: Tensor, name: str) -> None:
    caches = [foreign(name, pair) for _ in pair]
    for start, stop in ((0, 4), (4, 6), (6, 7)):
        outputs = [m(ids[:, start:stop], past_key_values=c) for m, c in zip(pair, caches, strict=True)]
        if name == "StaticCache":  # promised to rounding: see docs/differences.md
            torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(outputs[0].logits, outputs[1].logits)
        assert outputs[0].past_key_values is caches[0] and caches[0].get_seq_length() == stop
    for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["DynamicCache", "DynamicCache(config)", "StaticCache"])
def test_caches_of_transformers_in_generate(pair: Pair, ids: Tensor, name: str) -> None:
    for way in ({}, {"do_sample": True}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        if name == "StaticCache" and "num_beams" in way:
            continue
        caches = iter([foreign(name, pair) for _ in pair])
        flags = {"return_dict_in_generate": True, "past_key_values": lambda caches=caches: next(caches), **way}
        ours, theirs = both(pair, ids, **flags)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        assert type(ours.past_key_values) is type(theirs.past_key_values)
        assert int(ours.past_key_values.get_seq_length()) == int(theirs.past_key_values.get_seq_length())
    with pytest.raises(LlamitaError, match=f"a DynamicCache, not a LlamaForCausalLM and a {name[:6]}"):
        pair[0].generate(ids, past_key_values=foreign(name, pair), prompt_lookup_num_tokens=2)


def test_going_on_from_a_cache_of_transformers(pair: Pair, ids: Tensor) -> None:
    cache = peers.library().DynamicCache()
    first = pair[0].generate(ids, past_key_values=cache, max_new_tokens=3)
    rest = pair[0].generate(first, past_key_values=cache, max_new_tokens=3)
    assert rest.tolist() == pair[0].generate(ids, max_new_tokens=6).tolist()


def test_other_caches_are_refused_or_read(pair: Pair, ids: Tensor, tiny_config: LlamaConfig) -> None:
    library, ours = peers.library(), pair[0]
    cache = DynamicCache()
    expected = ours(ids, past_key_values=cache, use_cache=True).logits[:, 4:]
    pairs = tuple((k[:, :, :4], v[:, :, :4]) for k, v in cache)
    output = ours(ids[:, 4:], past_key_values=pairs)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert output.past_key_values.length == 7
    assert ours(ids, past_key_values=()).past_key_values.length == 7
    sliding = library.DynamicCache(config=library.MistralConfig(sliding_window=4, num_hidden_layers=3))
    encoder = library.EncoderDecoderCache(library.DynamicCache(), library.DynamicCache())
    wrong: list[tuple[Any, str]] = [
        (sliding, "works only there"), (encoder, "EncoderDecoderCache"), (5, "is a int, which is no cache"),
        ({}, "is a dict"), ([1, 2], "list, but not of"), ([(ids, ids)], "list, but not of"),
    ]  # fmt: skip
    for given, message in wrong:
        for call in (
            lambda given=given: ours(ids, past_key_values=given),
            lambda given=given: ours.generate(ids, past_key_values=given),
        ):
            with pytest.raises(LlamitaError, match=message):
                call()
    scaled = tiny_config.replace(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(UnsupportedError, match="frequencies depend on the length"):
        LlamaForCausalLM(scaled)(ids, past_key_values=library.DynamicCache())
    small = library.StaticCache(config=pair[1].config, max_cache_len=5)
    with pytest.raises(UsageError, match="do not fit a StaticCache of 5"):
        ours(ids, past_key_values=small)


def test_a_fused_model_takes_caches_of_transformers(small_path: Path) -> None:
    plain = LlamaForCausalLM.from_pretrained(small_path)
    ids = torch.tensor([[256, 65, 66, 67]])
    expected = plain.generate(ids, max_new_tokens=4)
    fused = fuse(LlamaForCausalLM.from_pretrained(small_path))
    assert (
        fused.generate(ids, max_new_tokens=4, past_key_values=peers.library().DynamicCache()).tolist()
        == expected.tolist()
    )
    assert fused(ids, cache_position=torch.arange(4), token_type_ids=torch.zeros_like(ids)).logits.shape == (1, 4, 260)


def test_cache_positions_and_token_types(pair: Pair, ids: Tensor) -> None:
    ours, cache = pair[0], DynamicCache()
    plain = ours(ids).logits
    types = torch.zeros_like(ids)
    assert torch.equal(ours(ids, token_type_ids=types, cache_position=torch.arange(7)).logits, plain)
    assert torch.equal(ours.model(ids, token_type_ids=types).last_hidden_state, ours.model(ids).last_hidden_state)
    ours(ids[:, :4], past_key_values=cache, cache_position=torch.arange(4))
    ours(ids[:, 4:], past_key_values=cache, cache_position=torch.arange(4, 7))
    with pytest.raises(UsageError, match="cache_position is not 7 to 13"):
        ours(ids, past_key_values=cache, cache_position=torch.arange(7))
    with pytest.raises(UsageError, match="cache_position is a list, not a tensor"):
        ours(ids, cache_position=[*range(7)])
    for name, given in (("token_type_ids", types), ("cache_position", torch.arange(7))):  # there an error too
        with pytest.raises(UsageError, match=f"generate takes no {name}"):
            ours.generate(ids, **{name: given})
    scorer = LlamaForSequenceClassification(ours.config).eval()
    assert torch.equal(scorer(ids, token_type_ids=types).logits, scorer(ids).logits)


def test_a_tokenizer_of_transformers(small_path: Path) -> None:
    ours = LlamaForCausalLM.from_pretrained(small_path)
    theirs = peers.load(small_path, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer, own = peers.library().AutoTokenizer.from_pretrained(str(small_path)), load_tokenizer(small_path)
    prompt = torch.tensor([own.encode("abc")])
    for seed in range(3):
        flags: dict[str, Any] = {"do_sample": True, "max_new_tokens": 60, "stop_strings": ["a", "the", "<|pad|>"]}
        results = []
        for model, given in ((ours, tokenizer), (ours, own), (ours, tokenizer.backend_tokenizer), (theirs, tokenizer)):
            torch.manual_seed(seed)
            results.append(model.generate(prompt, tokenizer=given, **flags).tolist())
        assert results[0] == results[1] == results[2] == results[3]
    flags = {"max_new_tokens": 8, "choice": ["yes", "no"]}
    assert (
        ours.generate(prompt, tokenizer=tokenizer, **flags).tolist()
        == ours.generate(prompt, tokenizer=own, **flags).tolist()
    )
    with pytest.raises(UsageError, match="cannot read a str as a tokenizer"):
        ours.generate(prompt, tokenizer="gpt2", stop_strings="a")


@pytest.mark.parametrize("scale", [0.7, 1.6])
def test_guidance_in_bf16(pair: Pair, ids: Tensor, scale: float) -> None:
    ours = LlamaForCausalLM(pair[0].config).to(torch.bfloat16).eval()
    flags: dict[str, Any] = {"guidance_scale": scale, "return_dict_in_generate": True, "output_scores": True}
    for negative in (None, ids[:, :3]):
        mine, reference = both((ours, peers.twin(ours)), ids, negative_prompt_ids=negative, **flags)
        assert mine.sequences.tolist() == reference.sequences.tolist()
        assert all(torch.equal(a, b) for a, b in zip(mine.scores, reference.scores, strict=True))


def test_beam_indices_without_scores(pair: Pair, ids: Tensor) -> None:
    for scores in (False, True):
        flags: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "eos_token_id": list(range(20, 50))}
        ours, theirs = both(pair, ids, return_dict_in_generate=True, output_scores=scores, **flags)
        assert ours.beam_indices.tolist() == theirs.beam_indices.tolist()
        assert ours.beam_indices.dtype == theirs.beam_indices.dtype == torch.int32
        assert (ours.sequences_scores is None) == (theirs.sequences_scores is None) == (not scores)


@pytest.mark.parametrize("way", [{"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2}], ids=str)
def test_a_static_cache_and_several_texts(pair: Pair, ids: Tensor, way: dict[str, Any]) -> None:
    ours, theirs = both(pair, ids, cache_implementation="static", disable_compile=True, **way)
    assert ours.tolist() == theirs.tolist()


STOPPED: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "seed": 1},
    {"num_beams": 2},
    {"prompt_lookup_num_tokens": 2},
    {"prompt_lookup_num_tokens": 2, "do_sample": True},
    {"assistant": True},
]


@pytest.mark.parametrize("way", STOPPED, ids=str)
def test_stop_strings_that_name_special_tokens(small_path: Path, way: dict[str, Any]) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(small_path), load_tokenizer(small_path)
    reference = peers.load(small_path, dtype=torch.float32, attn_implementation="sdpa")
    prompt = torch.tensor([tokenizer.encode("ab")])
    c, d, e = tokenizer.encode("cde", add_special_tokens=False)
    text = [c, 258, d, e]

    def dictated(ids: Tensor, logits: Tensor) -> Tensor:
        """Whatever the model says: the text, over and over."""
        forced = torch.full_like(logits, -30.0)
        for row, length in enumerate((ids >= 0).sum(-1).tolist()):
            forced[row, text[(length - 3) % 4]] = 30.0
        return forced

    flags: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None, "logits_processor": [dictated], **way}
    if flags.pop("assistant", False):
        flags["assistant_model"] = model
    name = tokenizer.id_to_token(258) or ""
    for stop, written in ((name, 2), (f"c{name}d", 3), (f"{name}de", 4), (f"{name[3:]}d", 3), ("cd", 8)):
        mine = model.generate(prompt, tokenizer=tokenizer, stop_strings=stop, **flags)
        assert mine[0, 3:].tolist() == (text * 2)[:written], stop
        if set(way) <= {"do_sample", "num_beams"}:
            peer = peers.library().AutoTokenizer.from_pretrained(str(small_path))
            plain = peers.library().LogitsProcessorList([dictated])
            theirs = {**flags, "logits_processor": plain, "eos_token_id": 255}
            assert mine.tolist() == reference.generate(prompt, tokenizer=peer, stop_strings=stop, **theirs).tolist()


NO_TENSORS: dict[str, Any] = {
    "input_ids": [[5, 6, 7]],
    "attention_mask": [[1, 1, 1]],
    "position_ids": [[0, 1, 2]],
    "inputs_embeds": [[[0.5]]],
    "negative_prompt_ids": [[4]],
    "negative_prompt_attention_mask": [[1]],
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_is_no_tensor_is_refused(pair: Pair, name: str) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(UsageError, match=rf"^{name} is a list, not a tensor: pass torch\.tensor\({name}\)$"):
        pair[0].generate(**{"input_ids": ids, name: NO_TENSORS[name]})
    if name in ("attention_mask", "position_ids"):
        for model in (pair[0], fuse(LlamaForCausalLM(pair[0].config.replace(head_dim=16)).eval())):
            with pytest.raises(UsageError, match=rf"^{name} is a list, not a tensor"), torch.no_grad():
                model(ids, **{name: NO_TENSORS[name]})
    with pytest.raises(UsageError, match=r"^input_ids is a dict, not a tensor: unpack it with \*\*$"):
        pair[0].generate({"input_ids": ids})


@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 6), (2, 1, 7, 7)])
def test_a_mask_that_does_not_cover_the_input_is_refused(pair: Pair, ids: Tensor, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UsageError, match=r"^attention_mask is \(.*\) for an input of \(2, 7\): give one number a token"
    ):
        pair[0].generate(ids, attention_mask=torch.ones(shape), max_new_tokens=1)
