"""Where tokens stand and how they attend: positions, masks, packed documents, recorded weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llamita import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache
from llamita.context import Cached, Causal, Packed, Recording, from_arguments

B, T, V = 2, 7, 61
CONFIG = LlamaConfig(
    vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=32, initializer_range=0.3,
)  # fmt: skip
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
RIGHT = LEFT.flip(1)
LENGTHS = (3, 1, 4)
NUMBERS = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2]])


def model(backend: str = "sdpa", **changes: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(CONFIG.replace(attn_implementation=backend, **changes)).eval()


def positions(mask: Tensor | None, **given: object) -> list[list[int]]:
    context = from_arguments(torch.empty(B, T, 4), attention_mask=mask, scale=1.0, **given)  # type: ignore[arg-type]
    return context.positions.expand(B, -1).tolist()


def test_positions_are_counted_from_the_mask() -> None:
    assert positions(None) == [[0, 1, 2, 3, 4, 5, 6]] * 2
    assert positions(LEFT) == [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]
    assert positions(RIGHT) == [[0, 1, 2, 3, 4, 4, 4], [0, 1, 2, 3, 4, 5, 6]]
    assert positions(torch.ones(B, 1, T, T).bool()) == [[0, 1, 2, 3, 4, 5, 6]] * 2


def test_positions_go_on_behind_a_cache() -> None:
    cache = DynamicCache()
    cache.update(torch.empty(B, 1, 3, 4), torch.empty(B, 1, 3, 4), 0)
    assert positions(None, cache=cache) == [[3, 4, 5, 6, 7, 8, 9]] * 2
    mask = torch.cat((torch.tensor([[0, 0, 1], [1, 1, 1]]), torch.ones(B, T).long()), dim=1)
    assert positions(mask, cache=cache) == [[1, 2, 3, 4, 5, 6, 7], [3, 4, 5, 6, 7, 8, 9]]
    assert isinstance(from_arguments(torch.empty(B, T, 4), cache=cache, scale=1.0), Cached)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.ones(B), r"^attention_mask has shape \(2,\): give \(batch, tokens\) or a 4-D mask$"),
        (
            torch.ones(B, T - 1),
            r"^attention_mask has shape \(2, 6\), but 2 rows of 0 cached and 7 new tokens need \(2, 7",
        ),
        (torch.ones(B + 1, T), r"^attention_mask has shape \(3, 7\), but 2 rows of 0 cached"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        positions(mask)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_four_dimensional_masks_say_what_two_dimensional_ones_do(backend: str) -> None:
    llama, ids = model(backend), torch.randint(0, V, (B, T))
    allowed = torch.ones(T, T).tril().bool() & LEFT.bool()[:, None, None]
    lowest = torch.zeros(B, 1, T, T).masked_fill(~allowed, torch.finfo(torch.float32).min)
    at = (LEFT.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = llama(ids, LEFT).logits[LEFT.bool()]
        for mask in (allowed, lowest, lowest.clamp(min=-torch.inf).where(allowed, -torch.inf)):
            torch.testing.assert_close(llama(ids, mask, at).logits[LEFT.bool()], expected, atol=1e-5, rtol=1e-5)


def test_repeated_positions_do_not_make_a_row_see_ahead() -> None:
    llama, ids = model(), torch.randint(0, V, (B, T))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % V
    at = torch.zeros(B, T, dtype=torch.long)
    for arguments in ({"attention_mask": LEFT}, {"past_key_values": DynamicCache()}):
        first = llama(ids, position_ids=at, **arguments).logits
        arguments = arguments if "attention_mask" in arguments else {"past_key_values": DynamicCache()}
        assert torch.equal(llama(other, position_ids=at, **arguments).logits[:, :-1], first[:, :-1])


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_packed_documents_are_as_apart(backend: str) -> None:
    llama, ids = model(backend), torch.randint(0, V, (1, sum(LENGTHS)))
    at = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    context = Packed(NUMBERS, scale=CONFIG.head_dim**-0.5, backend=backend)
    with torch.no_grad():
        apart = torch.cat([llama(part).logits for part in ids.split(LENGTHS, dim=1)], dim=1)
        for arguments in ({"position_ids": at, "use_cache": False}, {"context": context}):
            torch.testing.assert_close(llama(ids, **arguments).logits, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_document_sends_no_gradient_to_another(backend: str) -> None:
    llama = model(backend)
    embeds = torch.randn(1, sum(LENGTHS), 24, requires_grad=True)
    logits = llama(inputs_embeds=embeds, context=Packed(NUMBERS, scale=0.5, backend=backend)).logits
    logits[:, -LENGTHS[-1] :].sum().backward()
    assert embeds.grad is not None
    reached = embeds.grad.abs().sum(-1)[0] > 0
    assert reached.tolist() == [False] * sum(LENGTHS[:-1]) + [True] * LENGTHS[-1]


def test_positions_that_start_anew_mean_documents_only_without_mask_and_cache() -> None:
    at = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    assert from_arguments(torch.empty(B, T, 4), position_ids=at, scale=1.0).mask.documents is not None
    for given in ({"attention_mask": torch.ones(B, T)}, {"cache": DynamicCache()}):
        assert from_arguments(torch.empty(B, T, 4), position_ids=at, scale=1.0, **given).mask.documents is None
    shifted = torch.arange(5, 5 + T)[None]
    assert from_arguments(torch.empty(B, T, 4), position_ids=shifted, scale=1.0).mask.documents is None


@pytest.mark.parametrize("cached", [False, True])
def test_recorded_weights_are_eagers_and_outputs_stay_the_backends(cached: bool) -> None:
    llama, ids = model("sdpa"), torch.randint(0, V, (B, T))
    reference = model("eager")
    reference.load_state_dict(llama.state_dict())

    def run(which: LlamaForCausalLM, **arguments: object) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        cache = which(ids[:, :4], LEFT[:, :4]).past_key_values if cached else None
        out = which(ids[:, 4:] if cached else ids, LEFT, past_key_values=cache, **arguments)
        return out.logits, out.attentions

    with torch.no_grad():
        plain, none = run(llama)
        recorded, weights = run(llama, output_attentions=True)
        _, expected = run(reference, output_attentions=True)
    assert none is None
    assert torch.equal(recorded, plain)
    assert weights is not None
    assert expected is not None
    assert [w.shape for w in weights] == [(B, 6, 3 if cached else T, T)] * 3
    for ours, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.sum(-1), torch.ones_like(ours.sum(-1)))
    assert torch.equal(weights[0], expected[0])  # nothing has rounded otherwise before the first layer


def test_only_the_layers_asked_for_are_recorded() -> None:
    llama, ids = model(), torch.randint(0, V, (B, T))
    with torch.no_grad():
        every = llama(ids, output_attentions=True).attentions
        for layers, chosen in (([1], [1]), (2, [2]), ((0, -1), [0, 2]), (False, None)):
            found = llama(ids, output_attentions=layers).attentions
            assert (found is None) == (chosen is None)
            for ours, layer in zip(found or (), chosen or (), strict=True):
                assert torch.equal(ours, every[layer])
    with pytest.raises(ValueError, match=r"^output_attentions names \[3\], but there are 3: give numbers from 0 to 2$"):
        llama(ids, output_attentions=[3])


def test_a_recording_context_can_be_given() -> None:
    llama, ids = model(), torch.randint(0, V, (1, 8))
    inner = Packed(NUMBERS, scale=CONFIG.head_dim**-0.5)
    recording = Recording(inner, layers=(1,))
    with torch.no_grad():
        out = llama(ids, context=recording)
        assert torch.equal(out.logits, llama(ids, context=inner).logits)
    assert list(recording.weights) == [1]
    assert out.attentions is not None
    across = NUMBERS[0, :, None] != NUMBERS[0]
    assert (recording.weights[1][0, :, across] == 0).all()


def test_weights_recorded_under_eager_carry_gradients() -> None:
    llama = model("eager")
    weights = llama(torch.randint(0, V, (B, T)), output_attentions=True).attentions
    weights[1].square().sum().backward()
    assert llama.model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_attention_dropout_acts_in_training_only() -> None:
    llama, ids = model("eager", attention_dropout=0.5), torch.randint(0, V, (B, T))
    assert torch.equal(llama(ids).logits, llama(ids).logits)
    llama.train()
    assert not torch.equal(llama(ids).logits, llama(ids).logits)


CONTEXTS: dict[str, Callable[[Tensor], dict[str, object]]] = {
    "plain": lambda ids: {},
    "mask": lambda ids: {"attention_mask": LEFT},
    "context": lambda ids: {"context": Packed(torch.zeros_like(ids), scale=0.5)},
    "static cache": lambda ids: {"past_key_values": StaticCache(CONFIG, batch=B, capacity=9)},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CONTEXTS)
def test_the_model_is_one_graph(case: str, backend: str) -> None:
    torch._dynamo.reset()
    llama, ids = model(backend), torch.randint(0, V, (B, T))
    compiled = torch.compile(llama, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = llama(ids, use_cache=False, **CONTEXTS[case](ids)).logits
        logits = compiled(ids, use_cache=False, **CONTEXTS[case](ids)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_causal_is_the_context_of_plain_arguments() -> None:
    context = from_arguments(torch.empty(B, T, 4), scale=0.25, dropout=0.1, window=3)
    assert type(context) is Causal
    assert (context.scale, context.dropout, context.mask.window, context.cache) == (0.25, 0.1, 3, None)
