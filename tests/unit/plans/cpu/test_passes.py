"""Single passes of a fused model: their logits, what is left to the plain model, and what becomes of the cache."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from llamita.cache.cache import Cache
from llamita.cache.dynamic import DynamicCache
from llamita.cache.growing import GrowingCache
from llamita.context.packed import Packed
from llamita.errors import UnsupportedError
from llamita.kernels.cpu.runtime.program import Program
from llamita.model.llama import LlamaForCausalLM
from llamita.plans.cpu import fuse, unfuse, unsupported_reason
from llamita.plans.cpu.passes import ModelParts, Pass
from llamita.plans.cpu.weights import LayerWeights
from llamita.plans.cpu.workspace import Workspace
from llamita.quant.surgery import quantize
from tests.unit.plans.cpu.models import plain, prompt, twins, write

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.006}  # of the largest; seen: 0, 0.033, 0.0033


def filled(model: LlamaForCausalLM, ids: Tensor, cache: Cache, mask: Tensor | None = None) -> Cache:
    """The cache, with ids read into it."""
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 17, 40])
@torch.no_grad()
def test_logits_are_the_fp32_models(dtype: torch.dtype, tokens: int) -> None:
    """And no farther from them than the plain model of the same dtype, which rounds more."""
    expected, fused = twins(dtype)
    plain = deepcopy(expected).to(dtype)
    ids, mine, its, plains = prompt(2, 9 + tokens), GrowingCache(), DynamicCache(), DynamicCache()
    for part in ids.split([9, tokens], dim=1):
        kept = min(8, part.shape[1])
        out = fused(part, past_key_values=mine, use_cache=True, logits_to_keep=kept)
        wanted = expected(part, past_key_values=its, use_cache=True, logits_to_keep=kept).logits
        assert out.logits.dtype == torch.float32 and out.past_key_values is mine
        torch.testing.assert_close(out.logits, wanted, rtol=0, atol=CLOSE[dtype] * float(wanted.abs().max()))
        rounded = plain(part, past_key_values=plains, use_cache=True, logits_to_keep=kept).logits
        assert (out.logits - wanted).norm() <= 1.1 * (rounded - wanted).norm() + 1e-4 * wanted.norm()
    for my_layer, its_layer in zip(mine, its, strict=True):
        for my, other in zip(my_layer, its_layer, strict=True):
            torch.testing.assert_close(my.float(), other, rtol=0, atol=CLOSE[dtype] * float(other.abs().max()))


@pytest.mark.parametrize("keep", [0, 1, 2, 9, torch.tensor([0, 3])], ids=str)
@pytest.mark.parametrize("tokens", [4, 20])
@torch.no_grad()
def test_as_many_logits_as_are_asked_for(keep: int | Tensor, tokens: int) -> None:
    expected, fused = twins()
    ids, mine, its = prompt(1, tokens), GrowingCache(), DynamicCache()
    filled(fused, ids, mine)
    filled(expected, ids, its)
    out = fused(ids, past_key_values=mine, logits_to_keep=keep).logits
    wanted = expected(ids, past_key_values=its, logits_to_keep=keep).logits
    assert out.shape == wanted.shape
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_long_prompt_is_read_in_parts() -> None:
    expected, fused = twins(num_hidden_layers=1, max_position_embeddings=4096)
    for batch, tokens in ((1, 1024), (1, 1025), (2, 1030), (1, 2048)):
        ids = prompt(batch, tokens)
        out = fused(ids, logits_to_keep=2, use_cache=True)
        torch.testing.assert_close(out.logits, expected(ids, logits_to_keep=2).logits, rtol=0, atol=1e-3)
        assert out.past_key_values.length == tokens


ASKED: dict[str, dict[str, Any]] = {
    "hidden states": {"output_hidden_states": True},
    "attentions": {"output_attentions": True},
    "labels": {"labels": torch.ones(2, 1, dtype=torch.long)},
    "positions": {"position_ids": torch.tensor([[9], [30]])},
    "a mask that hides a new token before others": {"attention_mask": torch.tensor([[1] * 12, [1] * 10 + [0, 1]])},
    "a mask of four axes": {"attention_mask": torch.zeros(2, 1, 1, 12)},
}


@pytest.mark.parametrize("name", ASKED)
@torch.no_grad()
def test_what_kernels_do_not_know_is_left_to_the_plain_model(name: str) -> None:
    model = plain()
    fused, ids = fuse(deepcopy(model)), prompt(2, 12)
    read = 10 if "new token" in name else 11
    caches = [filled(model, ids[:, :read], GrowingCache()) for _ in "ab"]
    wanted = model(ids[:, read:], past_key_values=caches[0], **ASKED[name])
    out = fused(ids[:, read:], past_key_values=caches[1], **ASKED[name])
    assert torch.equal(out.logits, wanted.logits)
    for mine, its in zip(
        out.hidden_states or out.attentions or (), wanted.hidden_states or wanted.attentions or (), strict=True
    ):
        assert torch.equal(mine, its)
    assert bool(out.hidden_states) == (name == "hidden states") and bool(out.attentions) == (name == "attentions")


@torch.no_grad()
def test_contexts_are_left_to_the_plain_model() -> None:
    model, ids = plain(), prompt(1, 12)
    packed = Packed(torch.tensor([[0] * 5 + [1] * 7]), scale=0.25)
    wanted = model(ids, context=packed)
    out = fuse(deepcopy(model))(ids, context=packed)
    assert torch.equal(out.logits, wanted.logits)
    assert out.past_key_values is wanted.past_key_values is None


@torch.no_grad()
def test_keys_that_are_not_turned_are_left_to_the_plain_model() -> None:
    model, ids = plain(), prompt(1, 12)
    fused, results = fuse(deepcopy(model)), []
    for one in (model, fused):
        cache = filled(one, ids[:, :11], GrowingCache(unrotated=True))
        results.append(one(ids[:, 11:], past_key_values=cache).logits)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["dynamic cache", "gradients", "training", "a hook", "no cache", "embeddings"])
def test_passes_that_are_not_for_kernels(name: str) -> None:
    model = plain()
    fused, ids = fuse(deepcopy(model)), prompt(2, 12)
    seen: list[object] = []
    results = []
    for one in (model, fused):
        flags: dict[str, Any] = {"use_cache": name != "no cache"}
        if name == "dynamic cache":
            flags["past_key_values"] = DynamicCache()
        if name == "a hook":
            one.model.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
        if name == "embeddings":
            flags["inputs_embeds"] = one.model.embed_tokens(ids).detach()
        one.train(name == "training")
        with torch.set_grad_enabled(name == "gradients"):
            results.append(one(None if name == "embeddings" else ids, **flags).logits)
    assert torch.equal(*results)
    assert results[1].requires_grad == (name == "gradients")
    assert len(seen) == 2 * (name == "a hook")


def test_gradients_flow_through_a_fused_model() -> None:
    fused = fuse(plain())
    fused(prompt(), labels=prompt()).loss.backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


@torch.no_grad()
def test_tuples_are_given_where_they_are_asked_for() -> None:
    fused = fuse(plain())
    ids, cache = prompt(), GrowingCache()
    filled(fused, ids, cache)
    logits, past = fused(ids[:, :1], past_key_values=cache, return_dict=False)
    assert logits.shape == (1, 1, 97) and past is cache


@pytest.mark.parametrize("tokens", [1, 12])
@torch.no_grad()
def test_holes_in_a_cache_are_as_if_they_were_not_there(tokens: int) -> None:
    expected, fused = twins()
    ids, mask = prompt(2, 11 + tokens), torch.ones(2, 11 + tokens, dtype=torch.long)
    mask[0, 3:6], mask[1, 9], mask[1, :2] = 0, 0, 0
    caches = [filled(model, ids[:, :11], GrowingCache(), mask[:, :11]) for model in (expected, fused)]
    wanted, out = (
        model(ids[:, 11:], attention_mask=mask, past_key_values=cache).logits
        for model, cache in zip((expected, fused), caches, strict=True)
    )
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-4)
    assert not torch.equal(out, wanted)  # the plain model adds in another order


# Which models


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        ({"head_dim": 24}, "its heads are 24 wide"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "its rotary type dynamic"),
    ],
)
def test_models_that_cannot_be_fused_say_why(changes: dict[str, Any], reason: str) -> None:
    model = plain(**changes)
    assert (unsupported_reason(model) or "").startswith(reason)
    with pytest.raises(UnsupportedError, match=f"cannot be fused: {reason}.*run it without"):
        fuse(model)


def test_layers_and_dtypes_that_kernels_do_not_know() -> None:
    class Odd(nn.Linear):
        pass

    model = plain()
    model.model.layers[1].mlp.up_proj = Odd(48, 88)  # pyright: ignore
    assert unsupported_reason(model) == "model.layers.1.mlp.up_proj is a Odd that the kernels do not know"
    assert "float64" in (unsupported_reason(plain(torch.float64)) or "")
    assert "meta" in (unsupported_reason(plain().to("meta")) or "")
    assert unsupported_reason(plain()) is None


def test_unfuse_takes_the_plan_back() -> None:
    model, ids = plain(), prompt()
    wanted = model(ids).logits
    assert fuse(model) is model and fuse(model) is model
    assert "forward" in vars(model)
    assert unfuse(model) is model and "forward" not in vars(unfuse(model))
    assert torch.equal(model(ids).logits, wanted)


# Weights that move


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", ["another dtype", "other weights in place", "a new head", "new weights"])
def test_weights_that_changed_are_noticed(change: str, dtype: torch.dtype) -> None:
    fused, ids = fuse(plain(dtype, attention_bias=True)), prompt()
    write(fused, ids)
    other = plain(dtype, attention_bias=True).state_dict()
    if change == "another dtype":
        fused.to(torch.float16)
    elif change == "other weights in place":
        fused.load_state_dict(other)
    elif change == "a new head":
        fused.lm_head = nn.Linear(48, 97, bias=True).to(dtype)
    else:
        fused.load_state_dict(other, assign=True)
    fresh = fuse(deepcopy(unfuse(deepcopy(fused))))
    assert torch.equal(write(fused, ids), write(fresh, ids))


def test_a_model_made_for_inference_only_runs() -> None:
    with torch.inference_mode():
        fused, ids = fuse(plain(torch.bfloat16)), prompt()
        assert torch.equal(write(fused, ids), write(fused, ids))


def test_a_copy_runs_on_its_own_weights() -> None:
    fused, ids = fuse(plain()), prompt()
    before = write(fused, ids)
    twin = deepcopy(fused)
    with torch.no_grad():
        fused.lm_head.weight.zero_()
    assert torch.equal(write(twin, ids), before)


# Faults


@pytest.mark.parametrize("tokens", [1, 30])
@pytest.mark.parametrize("wrong", [97, -1, 1 << 40])
@torch.no_grad()
def test_ids_outside_the_vocabulary_are_refused(wrong: int, tokens: int) -> None:
    fused, ids = fuse(plain()), prompt(1, tokens)
    cache = filled(fused, prompt(), GrowingCache())
    ids[0, -1] = wrong
    with pytest.raises(IndexError, match="97"):
        fused(ids, past_key_values=cache, logits_to_keep=1)
    assert cache.length == 11


@pytest.mark.parametrize("tokens", [1, 30])
@torch.no_grad()
def test_an_interrupted_step_leaves_the_cache_as_it_was(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, ids = fuse(plain()), prompt(1, 11 + tokens)
    wanted = fused(ids, logits_to_keep=1).logits
    cache = filled(fused, ids[:, :11], GrowingCache())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Program, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fused(ids[:, 11:], past_key_values=cache, logits_to_keep=1)
    assert cache.length == 11
    out = fused(ids[:, 11:], past_key_values=cache, logits_to_keep=1).logits
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_prompt_interrupted_between_two_parts_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = fuse(plain(num_hidden_layers=1, max_position_embeddings=4096))
    cache, read, parts = filled(fused, prompt(), GrowingCache()), Pass.run, []

    def interrupt(self: Pass, ids: Tensor, *arguments: Any) -> Tensor:
        parts.append(ids.shape[1])
        if len(parts) == 2:
            raise KeyboardInterrupt
        return read(self, ids, *arguments)

    monkeypatch.setattr(Pass, "run", interrupt)
    for tokens in (2048, 2500):  # whole parts and one token, parts and a rest
        parts.clear()
        with pytest.raises(KeyboardInterrupt):
            fused(prompt(1, tokens), past_key_values=cache, logits_to_keep=1)
        assert cache.length == 11 and parts == [512, 512]


def test_a_model_keeps_no_cache_alive() -> None:
    fused = fuse(plain())
    cache = filled(fused, prompt(), GrowingCache())
    filled(fused, prompt(1, 1), cache)
    assert isinstance(cache, GrowingCache)
    watched = ref(cache.buffers[0][0])
    del cache
    assert watched() is None


def test_a_step_finds_a_cache_that_moved_and_another_one() -> None:
    expected, fused = twins()
    ids, mine, its = prompt(3, 14), [GrowingCache(), GrowingCache()], [DynamicCache(), DynamicCache()]
    for model, caches in ((fused, mine), (expected, its)):
        for number, cache in enumerate(caches):
            filled(model, ids[:, number : number + 9], cache)
            filled(model, ids[:, 9:10], cache)
    chosen = torch.tensor([2, 0, 0])
    for first, second in (mine, its):
        first.select(chosen)
        second.crop(4)
    with torch.no_grad():
        for one, other in zip(mine, its, strict=True):
            out, wanted = fused(ids[:, 10:11], past_key_values=one), expected(ids[:, 10:11], past_key_values=other)
            torch.testing.assert_close(out.logits, wanted.logits, rtol=0, atol=1e-4)


def test_two_threads_use_one_model() -> None:
    expected, fused = twins()
    prompts = [prompt(1, tokens) for tokens in (3, 5, 7, 9)]
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda ids: write(fused, ids), prompts))
    assert all(torch.equal(text, write(expected, ids)) for text, ids in zip(written, prompts, strict=True))


# Quantized


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k", "q4_k_m", "iq4_nl", "mxfp4"])
@torch.no_grad()
def test_quantized_layers_and_embeddings(name: str) -> None:
    """As near as a change in the last place of the embeddings leaves the plain one: activations round either way."""
    model = plain(
        hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64, num_hidden_layers=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    quantize(model, name)
    fused, ids = fuse(deepcopy(model)), prompt(2, 13)
    mine, its = filled(fused, ids[:, :11], GrowingCache()), filled(model, ids[:, :11], DynamicCache())
    for tokens in (ids[:, 11:12], ids[:, 12:]):
        out, wanted = (m(tokens, past_key_values=c).logits for m, c in ((fused, mine), (model, its)))
        assert float((out - wanted).norm() / wanted.norm()) < 0.02
        assert torch.equal(out.argmax(-1), wanted.argmax(-1))


def test_programs_are_made_once_for_each_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build = Pass.__init__
    monkeypatch.setattr(Pass, "__init__", lambda self, *a, **k: (made.append(a[2]), build(self, *a, **k))[1])
    fused = fuse(plain())
    for rows, tokens in ((1, 20), (2, 10), (20, 1), (1, 20)):
        write(fused, prompt(rows, tokens))
    assert made == [20, 1, 2]


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("levels", [1, 2])
@torch.no_grad()
def test_calls_that_repeat_a_layers_are_those_that_are_built_for_each(
    tokens: int, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers of two kinds, in turns, with biases that are copied, and with a matrix that two products share."""
    model = plain(torch.bfloat16, num_hidden_layers=5, hidden_size=64, intermediate_size=96, attention_bias=True)
    quantize(model, {"model.layers.[02].mlp.*_proj": "q8_0"})
    model.model.layers[3].self_attn.k_proj.weight = model.model.layers[3].self_attn.v_proj.weight
    workspace = Workspace()

    def calls() -> list[list[int]]:
        """The numbers of all calls, addresses by the order in which they come first."""
        made, seen = (
            Pass(ModelParts.of(model), workspace, tokens, dtype=torch.bfloat16, levels=levels),
            dict[int, int](),
        )
        rows = made._program._rows[1:].tolist()
        numbers = [attention._decode.numbers for attention in made._attention]
        return [[seen.setdefault(one, -len(seen)) if one >> 36 else one for one in row] for row in rows] + numbers

    repeated = calls()
    monkeypatch.setattr(LayerWeights, "can_replace", lambda self, other: False)
    assert repeated == calls()


def test_a_program_runs_in_inference_mode_and_out_of_it(small_path: Path) -> None:
    model, ids = fuse(LlamaForCausalLM.from_pretrained(small_path)), torch.tensor([list(range(12))])
    found = []
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            cache = GrowingCache()
            for part in (ids[:, :11], ids[:, 11:]):
                logits = model(part, past_key_values=cache, logits_to_keep=1).logits
            found.append(logits.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
