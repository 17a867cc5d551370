"""Forward's contract: arguments, outputs, the logits kept, the losses, and what they hold in memory."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llamita import LlamaConfig, LlamaForCausalLM, LlamaModel

B, T, V, D, L = 2, 7, 61, 24, 3
CONFIG = LlamaConfig(
    vocab_size=V, hidden_size=D, intermediate_size=40, num_hidden_layers=L, num_attention_heads=6,
    num_key_value_heads=3, max_position_embeddings=32, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(CONFIG).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, V, (B, T))


def test_exactly_one_of_ids_and_embeddings(model: LlamaForCausalLM, ids: Tensor) -> None:
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match=r"^You must specify exactly one of input_ids or inputs_embeds$"):
            model(**arguments)


def test_hidden_states_are_one_more_than_layers_and_end_behind_the_norm(model: LlamaForCausalLM, ids: Tensor) -> None:
    base = model.model
    states = base(ids, output_hidden_states=True).hidden_states
    assert len(states) == L + 1
    assert torch.equal(states[0], base.embed_tokens(ids))
    assert torch.equal(states[-1], base(ids).last_hidden_state)
    for wanted, chosen in ((1, [1]), ([0, -1], [0, L]), (False, None), (None, None)):
        found = base(ids, output_hidden_states=wanted).hidden_states
        assert (found is None) == (chosen is None)
        assert all(torch.equal(ours, states[at]) for ours, at in zip(found or (), chosen or (), strict=True))
    with pytest.raises(
        ValueError, match=r"^output_hidden_states names \[4\], but there are 4: give numbers from 0 to 3$"
    ):
        base(ids, output_hidden_states=4)


def test_outputs_are_read_in_three_ways(model: LlamaForCausalLM, ids: Tensor) -> None:
    out = model(ids, labels=ids, use_cache=True)
    assert out.keys() == ["loss", "logits", "past_key_values"]
    assert list(out) == out.keys()
    assert out[0] is out.loss is out["loss"] is out.get("loss")
    assert out[1] is out.logits
    assert out[:2] == (out.loss, out.logits)
    assert len(out) == len(out.to_tuple()) == len(out.values()) == 3
    assert dict(out.items())["logits"] is out.logits
    assert "attentions" not in out
    assert out.get("attentions", 5) == 5
    with pytest.raises(KeyError):
        _ = out["attentions"]
    plain = model(ids, labels=ids, use_cache=False, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[1], out.logits)


def test_the_configs_old_flags_are_honoured(ids: Tensor) -> None:
    flags = {"output_hidden_states": True, "output_attentions": True, "return_dict": False, "use_cache": False}
    out = LlamaForCausalLM(LlamaConfig.from_dict(CONFIG.to_dict() | flags))(ids)
    assert isinstance(out, tuple)
    logits, hidden_states, attentions = out
    assert (len(hidden_states), len(attentions)) == (L + 1, L)
    assert logits.shape == (B, T, V)


KEPT: list[tuple[Any, Any]] = [
    (0, lambda x: x),
    (2, lambda x: x[:, -2:]),
    (torch.tensor([0, 3]), lambda x: x[:, [0, 3]]),
    (torch.tensor([-1]), lambda x: x[:, -1:]),
    (torch.tensor([[0, 3], [5, 1]]), lambda x: torch.stack((x[0, [0, 3]], x[1, [5, 1]]))),
    (torch.arange(B * T).view(B, T) % 3 == 0, lambda x: x[torch.arange(B * T).view(B, T) % 3 == 0]),
]


@pytest.mark.parametrize("case", range(len(KEPT)))
def test_logits_to_keep(model: LlamaForCausalLM, ids: Tensor, case: int) -> None:
    which, chosen = KEPT[case]
    torch.testing.assert_close(model(ids, logits_to_keep=which).logits, chosen(model(ids).logits))


def reference_loss(logits: Tensor, labels: Tensor, items: float | None = None) -> Tensor:
    rows, targets = logits[:, :-1].reshape(-1, V).float(), labels[:, 1:].reshape(-1)
    total = F.cross_entropy(rows, targets, ignore_index=-100, reduction="sum")
    return total / ((targets != -100).sum() if items is None else items)


def test_losses(model: LlamaForCausalLM, ids: Tensor) -> None:
    labels = ids.clone()
    labels[0, :3] = -100
    logits = model(ids).logits
    for items in (None, 5, torch.tensor(5)):
        loss = model(ids, labels=labels, num_items_in_batch=items).loss
        torch.testing.assert_close(loss, reference_loss(logits, labels, None if items is None else 5))
    moved = torch.cat((labels[:, 1:], torch.full((B, 1), -100)), dim=1)
    assert torch.equal(model(ids, shift_labels=moved).loss, model(ids, labels=labels).loss)
    half = model.to(torch.bfloat16)(ids, labels=labels)
    assert (half.loss.dtype, half.logits.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 5, 1000])
def test_the_chunked_loss_and_its_gradients_are_the_whole_ones(chunk: int, tied: bool, ids: Tensor) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=tied))
    labels = ids.clone()
    labels[1, 2:4] = -100
    for items in (None, 9):
        found = []
        for loss in (
            model(ids, labels=labels, num_items_in_batch=items).loss,
            model.loss(ids, labels, chunk=chunk, num_items_in_batch=items),
        ):
            model.zero_grad()
            loss.backward()
            found.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        (whole, expected), (chunked, gradients) = found
        torch.testing.assert_close(chunked, whole, atol=0, rtol=1e-6)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6 * theirs.abs().max().item(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^chunk is 0: it must be at least 1 token$"):
        model.loss(ids, labels, chunk=0)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in numbers."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple) else (out,):
            self.numel = max(self.numel, one.numel() if isinstance(one, Tensor) else 0)
        return out


def test_the_chunked_loss_never_holds_all_logits() -> None:
    config = CONFIG.replace(vocab_size=300, num_hidden_layers=1)
    model, ids = LlamaForCausalLM(config), torch.randint(0, 300, (2, 40))
    with Largest() as whole:
        model(ids, labels=ids).loss.backward()
    with Largest() as chunked:
        model.loss(ids, ids, chunk=8).backward()
    assert whole.numel == 2 * 40 * 300
    assert chunked.numel == 300 * D  # the head's gradient: a chunk's logits are fewer
    assert chunked.numel > 8 * 300


def test_a_model_is_copied_and_pickled_whole(ids: Tensor) -> None:
    model = LlamaForCausalLM(CONFIG.replace(tie_word_embeddings=True)).eval()
    expected = model(ids).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids).logits, expected)
        assert twin.lm_head.weight is twin.model.embed_tokens.weight
        assert twin.model.embed_tokens.weight is not model.model.embed_tokens.weight


def test_use_cache_is_the_configs_unless_said(ids: Tensor) -> None:
    for default in (True, False):
        model = LlamaForCausalLM(CONFIG.replace(use_cache=default))
        assert (model(ids).past_key_values is not None) == default
        assert (model(ids, use_cache=not default).past_key_values is None) == default


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_recompute_gives_the_same_gradients(every: int, reentrant: bool, ids: Tensor) -> None:
    model = LlamaForCausalLM(
        CONFIG.replace(use_cache=False, attention_dropout=0.2, attn_implementation="eager")
    ).train()
    found = []
    for recomputed in (False, True):
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=every)
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_recompute_runs_every_nth_layer_again(ids: Tensor) -> None:
    model = LlamaForCausalLM(CONFIG.replace(use_cache=False)).train()
    runs = [0] * L
    for at, layer in enumerate(model.model.layers):

        def count(*_: object, at: int = at) -> None:
            runs[at] += 1

        layer.mlp.register_forward_pre_hook(count)
    model.gradient_checkpointing_enable(every_n_layers=2)
    model(ids, labels=ids).loss.backward()
    assert runs == [2, 1, 2]
    model.eval()(ids)
    assert runs == [3, 2, 3]
    with pytest.raises(ValueError, match=r"^every_n_layers is 0: it must be at least 1$"):
        model.gradient_checkpointing_enable(every_n_layers=0)
    with pytest.raises(ValueError, match=r"^gradient_checkpointing_kwargs has policy: only use_reentrant is known$"):
        model.gradient_checkpointing_enable({"policy": True})


def test_recompute_turns_the_cache_off_with_one_warning(ids: Tensor) -> None:
    model = LlamaForCausalLM(LlamaConfig.from_dict(CONFIG.to_dict() | {"gradient_checkpointing": True}))
    assert model.is_gradient_checkpointing  # the old flag of a config file
    model.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        out = model(ids, labels=ids)
        out.loss.backward()
        model(ids, labels=ids)
    assert out.past_key_values is None
    assert len(caught) == 1
    assert "recompute runs every layer twice and would append to the cache twice" in str(caught[0].message)
    assert model.eval()(ids).past_key_values is not None


def test_gradients_reach_the_inputs_of_a_frozen_model(ids: Tensor) -> None:
    model = LlamaModel(CONFIG)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model(ids).last_hidden_state.requires_grad
    model.disable_input_require_grads()
    assert not model(ids).last_hidden_state.requires_grad
