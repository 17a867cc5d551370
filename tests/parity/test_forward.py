"""The forward contract, argument by argument, against transformers."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llamita import LlamaConfig, LlamaForCausalLM, StaticCache, verify
from llamita.bridge import transformers as peers
from llamita.config import ACTIVATIONS

CASE = verify.Case()


def pair(backend: str = "sdpa", dtype: str = "float32", **case: Any) -> tuple[LlamaForCausalLM, Any]:
    ours = verify.random_model(verify.Case(backend=backend, dtype=dtype, **case))
    return ours, peers.twin(ours)


def tokens(rows: int = 4, length: int = 13, seed: int = 0) -> Tensor:
    return torch.randint(0, 101, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_same(a: Any, b: Any) -> None:
    assert verify.largest(a, b) == 0


def rounding(config: LlamaConfig, logits: Tensor) -> float:
    """What passes of other shapes may differ by: libraries add in another order for each, by the CPU's registers.

    A logit is behind so many additions of fp32, one after the other, and each rounds by half a unit of the last place.
    """
    heads = config.num_attention_heads * config.head_dim
    layer = 2 * config.hidden_size + 2 * heads + config.intermediate_size + config.max_position_embeddings
    additions = config.num_hidden_layers * layer + config.hidden_size
    return 2.0**-24 * additions * float(logits.detach().abs().max())


both = pytest.mark.parametrize("backend", verify.BACKENDS)


@both
def test_inputs_embeds(backend: str) -> None:
    ours, theirs = pair(backend)
    embeds = torch.randn(4, 9, 60)
    assert_same(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)


def test_exactly_one_input_with_transformers_words() -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        for call in ({}, {"input_ids": tokens(), "inputs_embeds": torch.randn(4, 13, 60)}):
            with pytest.raises(ValueError, match="You must specify exactly one of input_ids or inputs_embeds"):
                model(**call)


@both
@pytest.mark.parametrize("starts", [(0, 5, 9), (0, 1, 2), (0, 12)])
def test_packed_documents_by_positions(backend: str, starts: tuple[int, ...]) -> None:
    ours, theirs = pair(backend)
    ends = (*starts[1:], 13)
    positions = torch.cat([torch.arange(end - start) for start, end in zip(starts, ends, strict=True)])[None]
    call = {"position_ids": positions, "use_cache": False}
    assert_same(ours(tokens(), **call).logits, theirs(tokens(), **call).logits)


@both
def test_positions_that_repeat_under_a_mask_stay_causal(backend: str) -> None:
    ours, theirs = pair(backend)
    positions = torch.arange(13).div(2, rounding_mode="floor")[None].expand(4, -1)
    call = {"position_ids": positions, "attention_mask": torch.ones(4, 13, dtype=torch.long)}
    assert_same(ours(tokens(), **call).logits, theirs(tokens(), **call).logits)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("heads", verify.HEADS)
def test_four_dimensional_mask(kind: str, heads: str) -> None:
    ours, theirs = pair("sdpa", heads=heads)
    visible = (torch.rand(4, 1, 13, 13) < 0.6).tril() | torch.eye(13, dtype=torch.bool)
    mask = visible if kind == "bool" else torch.where(visible, 0.0, torch.finfo(torch.float32).min)
    assert_same(ours(tokens(), attention_mask=mask).logits, theirs(tokens(), attention_mask=mask).logits)
    last = ours(tokens(), use_cache=True), theirs(tokens(), use_cache=True)
    one = mask.new_ones(4, 1, 1, 14) if kind == "bool" else mask.new_zeros(4, 1, 1, 14)
    a, b = (
        model(tokens(length=1), attention_mask=one, past_key_values=out.past_key_values).logits
        for model, out in zip((ours, theirs), last, strict=True)
    )
    assert_same(a, b)


def test_eager_takes_the_additive_mask_too() -> None:
    ours, theirs = pair("eager")
    mask = torch.where(torch.ones(13, 13).tril().bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    mask[..., 3] = -2.5
    mask = mask.expand(4, -1, -1, -1)
    assert_same(ours(tokens(), attention_mask=mask).logits, theirs(tokens(), attention_mask=mask).logits)


def test_attention_weights_are_eagers_and_outputs_stay_sdpas() -> None:
    ours, theirs = pair("eager")
    a, b = ours(tokens(), output_attentions=True), theirs(tokens(), output_attentions=True)
    assert len(a.attentions) == 3
    for mine, their in zip(a.attentions, b.attentions, strict=True):
        assert_same(mine, their)
    plain_sdpa = pair("sdpa")[1](tokens())
    ours.set_attn_implementation("sdpa")
    recorded = ours(tokens(), output_attentions=[0, 2])
    assert_same(recorded.logits, plain_sdpa.logits)
    assert len(recorded.attentions) == 2
    assert_same(recorded.attentions[0], b.attentions[0])


@both
def test_dropout_draws_the_same_numbers(backend: str) -> None:
    case = verify.Case(backend=backend)
    ours = LlamaForCausalLM(case.config().replace(attention_dropout=0.3))
    ours.load_state_dict(verify.random_model(case).state_dict())
    theirs = peers.twin(ours.train())
    results = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        results.append(model(tokens(), labels=tokens(), use_cache=False).loss)
    assert_same(*results)
    assert verify.largest(results[0], ours.eval()(tokens(), labels=tokens()).loss) > 0


@both
@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_losses(backend: str, dtype: str) -> None:
    ours, theirs = pair(backend, dtype)
    labels = tokens(seed=3)
    labels[0, :4] = -100
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    for call in (
        {"labels": labels},
        {"labels": labels, "num_items_in_batch": 17},
        {"labels": labels, "num_items_in_batch": torch.tensor(23)},
        {"labels": labels, "shift_labels": shifted},
    ):
        assert_same(ours(tokens(), **call).loss, theirs(tokens(), **call).loss)


@pytest.mark.parametrize(
    "kept",
    [0, 1, 3, 13, torch.tensor([0, 5, 2]), torch.tensor([[1, 2], [3, 3], [0, 12], [7, 1]])],
    ids=["all", "1", "3", "13", "1-D", "2-D"],
)
def test_logits_to_keep(kept: int | Tensor) -> None:
    ours, theirs = pair()
    assert_same(ours(tokens(), logits_to_keep=kept).logits, theirs(tokens(), logits_to_keep=kept).logits)


def test_logits_to_keep_by_a_bool_mask() -> None:
    ours, theirs = pair()
    kept = torch.rand(4, 13) < 0.4
    assert_same(ours(tokens(), logits_to_keep=kept).logits, theirs(tokens(), logits_to_keep=kept).logits)


def test_hidden_states_of_chosen_layers_and_as_a_tuple() -> None:
    ours, theirs = pair()
    a, b = ours(tokens(), output_hidden_states=True), theirs(tokens(), output_hidden_states=True)
    assert len(a.hidden_states) == len(b.hidden_states) == 4
    chosen = ours(tokens(), output_hidden_states=[0, 3]).hidden_states
    assert_same(chosen[0], b.hidden_states[0])
    assert_same(chosen[1], b.hidden_states[3])
    for mine, their in zip(ours(tokens(), return_dict=False), theirs(tokens(), return_dict=False), strict=True):
        if isinstance(mine, Tensor):
            assert_same(mine, their)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str) -> None:
    ours = LlamaForCausalLM(CASE.config().replace(hidden_act=name))
    ours.load_state_dict(verify.random_model(CASE).state_dict())
    theirs = peers.twin(ours.eval())
    assert_same(ours(tokens()).logits, theirs(tokens()).logits)


def test_proportional_positions() -> None:
    rope = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "factor": 2.0}
    ours = LlamaForCausalLM(CASE.config().replace(rope_parameters=rope))
    ours.load_state_dict(verify.random_model(CASE).state_dict())
    theirs = peers.twin(ours.eval())
    assert_same(ours(tokens()).logits, theirs(tokens()).logits)


@pytest.mark.parametrize("backend", verify.BACKENDS)
def test_tied_embeddings_and_their_gradient(backend: str) -> None:
    ours = LlamaForCausalLM(verify.Case(backend=backend).config().replace(tie_word_embeddings=True)).eval()
    theirs = peers.twin(ours)
    for model in (ours, theirs):
        model(tokens(), labels=tokens()).loss.backward()
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert_same(ours.lm_head.weight.grad, theirs.lm_head.weight.grad)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [False, True])
def test_static_cache(padding: bool, backend: str) -> None:
    ours, theirs = pair(backend=backend)
    x = tokens(length=12)
    mask = torch.ones_like(x)
    if padding:
        mask[1, :3] = 0
    positions = verify.positions_from(mask)
    assert positions is not None
    for masks in ([], [mask[:, :9], mask[:, :10], mask])[padding:]:
        mine = StaticCache(ours.config, batch=4, capacity=16)
        their = transformers.StaticCache(config=theirs.config, max_cache_len=16)
        for (start, stop), seen in zip(((0, 9), (9, 10), (10, 12)), masks or [None] * 3, strict=True):
            call: dict[str, Any] = {"attention_mask": seen}
            a = ours(x[:, start:stop], past_key_values=mine, **call).logits
            b = theirs(x[:, start:stop], past_key_values=their, position_ids=positions[:, start:stop], **call).logits
            assert_same(a, b)
    whole = ours(x, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(a[:, -1], whole, rtol=0, atol=rounding(ours.config, whole))


def test_right_padding_without_positions_gives_the_same_real_rows() -> None:
    ours, theirs = pair()
    mask = torch.ones(4, 13, dtype=torch.long)
    mask[2, 7:] = 0
    a, b = ours(tokens(), attention_mask=mask).logits, theirs(tokens(), attention_mask=mask).logits
    assert_same(a[mask.bool()], b[mask.bool()])


@pytest.mark.parametrize("dtype", verify.DTYPES)
def test_files_written_here_are_read_there_and_back(tmp_path, dtype: str) -> None:
    for rope in verify.ROPES:
        ours = verify.random_model(verify.Case(rope=rope, dtype=dtype))
        ours.save_pretrained(tmp_path)
        theirs = peers.load(tmp_path, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        expected = ours(tokens()).logits
        assert_same(theirs(tokens()).logits, expected)
        theirs.save_pretrained(tmp_path / "theirs")
        again = LlamaForCausalLM.from_pretrained(tmp_path / "theirs", device="cpu")
        assert again.dtype == ours.dtype
        assert_same(again(tokens()).logits, expected)


def test_mistral_windows() -> None:
    values = CASE.config().to_dict() | {"model_type": "mistral", "sliding_window": 5}
    ours = LlamaForCausalLM(LlamaConfig.from_dict(values)).eval()
    peer = transformers.MistralConfig(
        **{key: value for key, value in values.items() if key != "model_type"}, attn_implementation="sdpa"
    )
    theirs = transformers.MistralForCausalLM(peer).eval()
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours(tokens()).logits, theirs(tokens()).logits)
