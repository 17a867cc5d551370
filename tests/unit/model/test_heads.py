"""The heads: equal to transformers in value and gradient, their pooling, errors and files."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llamita import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForEmbedding,
    LlamaForQuestionAnswering,
    LlamaForReward,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)
from llamita.errors import UsageError

B, T, LABELS, PAD = 3, 7, 4, 0
CONFIG = LlamaConfig(
    vocab_size=101, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=3, num_labels=LABELS, pad_token_id=PAD,
)  # fmt: skip


def randomized(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Weights, biases and norms all random, so that nothing hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def batch(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and positions of rows of 7, 4 and 5 tokens."""
    lengths = torch.tensor([[7], [4], [5]])
    slots = torch.arange(T)
    mask = slots < lengths if side == "right" else slots >= T - lengths
    ids = torch.randint(1, 101, (B, T)).where(mask, PAD)
    return ids, mask.long(), (mask.long().cumsum(-1) - 1).clamp(min=0)


def token_labels(mask: Tensor) -> Tensor:
    return torch.randint(0, LABELS, (B, T)).where(mask.bool(), -100)


HEADS: dict[str, tuple[type, dict[str, Any]]] = {
    "classes": (LlamaForSequenceClassification, {"labels": torch.tensor([3, 0, 2])}),
    "questions": (LlamaForSequenceClassification, {"labels": torch.rand(B, LABELS)}),
    "numbers": (LlamaForSequenceClassification, {"labels": torch.rand(B), "num_labels": 1}),
    "several numbers": (LlamaForSequenceClassification, {"labels": torch.rand(B, LABELS), "problem": "regression"}),
    "tokens": (LlamaForTokenClassification, {"labels": token_labels}),
    "answers": (
        LlamaForQuestionAnswering,
        {"start_positions": torch.tensor([0, 2, 9]), "end_positions": torch.tensor([[3], [2], [6]])},
    ),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", HEADS)
def test_equals_transformers(case: str, dtype: torch.dtype, side: str, tmp_path: Path) -> None:
    cls, given = HEADS[case]
    targets = dict(given)
    config = CONFIG.replace(
        num_labels=targets.pop("num_labels", LABELS), problem_type=targets.pop("problem", None), attention_bias=True
    )
    randomized(cls(config), dtype).save_pretrained(tmp_path)
    ours = cls.from_pretrained(tmp_path, attn_implementation="eager")
    theirs = getattr(transformers, cls.__name__).from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")
    ids, mask, positions = batch(side)
    targets = {name: value(mask) if callable(value) else value for name, value in targets.items()}
    if case in ("questions", "numbers", "several numbers"):
        targets["labels"] = targets["labels"].to(dtype)
    a, b = (model(ids, mask, positions, output_hidden_states=True, **targets) for model in (ours, theirs))
    assert a.keys() == list(b.keys())
    assert a.loss.dtype == b.loss.dtype
    for name in ("loss", "logits", "start_logits", "end_logits"):
        assert (name in a) == (name in b)
        assert name not in a or torch.equal(a[name], b[name])
    a.loss.backward()
    b.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name]), name
    assert config.problem_type == given.get("problem")  # inferring changed nothing


def test_token_dropout_is_the_configs_or_a_tenth() -> None:
    for keys, rate in (
        ({}, 0.1),
        ({"hidden_dropout": 0.3}, 0.3),
        ({"classifier_dropout": 0.0, "hidden_dropout": 1}, 0),
    ):
        config = LlamaConfig.from_dict(CONFIG.to_dict() | keys)
        assert LlamaForTokenClassification(config).dropout.p == rate


def test_sequence_ends_are_found_or_refused() -> None:
    model = randomized(LlamaForSequenceClassification(CONFIG))
    ids, mask, _ = batch("right")
    expected = model(ids, mask).logits
    embeds = model.model.embed_tokens(ids)
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, expected)
    full = model(ids[:1], mask[:1]).logits
    assert torch.equal(model(inputs_embeds=embeds[:1]).logits, full)
    blind = LlamaForSequenceClassification(CONFIG.replace(pad_token_id=None))
    assert blind(ids[:1]).logits.shape == (1, LABELS)
    with pytest.raises(ValueError, match=r"^Cannot handle batch sizes > 1 if no padding token is defined\.$"):
        blind(ids)


def test_return_dict_false_gives_the_tuple() -> None:
    ids, mask, _ = batch("left")
    for cls, length in ((LlamaForSequenceClassification, 2), (LlamaForTokenClassification, 1)):
        out = cls(CONFIG)(ids, mask, return_dict=False)
        assert isinstance(out, tuple)
        assert len(out) == length


def test_reward_is_a_number_at_the_last_real_token() -> None:
    model = randomized(LlamaForReward(CONFIG))
    assert model.num_labels == model.config.num_labels == model.model.config.num_labels == 1
    ids, mask, _ = batch("right")
    rewards = model(ids, mask).logits
    assert rewards.shape == (B, 1)
    for row, length in enumerate((7, 4, 5)):
        alone = model(ids[row : row + 1, :length]).logits
        torch.testing.assert_close(rewards[row : row + 1], alone)
    # A mask decides over the pad id: chat models often pad with the token that ends a reply.
    ended = ids.clone()
    ended[1, 3] = PAD
    torch.testing.assert_close(model(ended, mask).logits[1:2], model(ended[1:2, :4], mask[1:2, :4]).logits)
    padded = LlamaForSequenceClassification(model.config)
    padded.load_state_dict(model.state_dict())
    assert torch.equal(padded(ids, mask).logits, rewards)


def test_reward_loss_is_of_pairs() -> None:
    model = randomized(LlamaForReward(CONFIG))
    (chosen, chosen_mask, _), (rejected, rejected_mask, _) = batch("right"), batch("left")
    loss = model.loss(chosen, rejected, chosen_mask=chosen_mask, rejected_mask=rejected_mask, margin=0.5)
    gap = model(chosen, chosen_mask).logits - model(rejected, rejected_mask).logits
    torch.testing.assert_close(loss, -torch.log(torch.sigmoid(gap - 0.5)).mean())
    loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_pool_real_tokens(side: str) -> None:
    model = randomized(LlamaForEmbedding(CONFIG))
    ids, mask, _ = batch(side)
    hidden = model.model(ids, mask).last_hidden_state
    rows = [hidden[row][mask[row].bool()] for row in range(B)]
    expected = {
        "mean": torch.stack([row.mean(0) for row in rows]),
        "last": torch.stack([row[-1] for row in rows]),
        "first": torch.stack([row[0] for row in rows]),
    }
    for pooling, vectors in expected.items():
        torch.testing.assert_close(model(ids, mask, pooling=pooling, normalize=False).embeddings, vectors)
        unit = model(ids, mask, pooling=pooling).embeddings
        torch.testing.assert_close(unit, F.normalize(vectors, dim=-1))
    torch.testing.assert_close(model(ids, normalize=False).embeddings, model.model(ids).last_hidden_state.mean(1))
    with pytest.raises(UsageError, match=r"^pooling 'max' is unknown: use one of mean, last, first$"):
        model(ids, pooling="max")


def test_heads_load_what_language_models_and_other_heads_saved(tmp_path: Path) -> None:
    folders = {cls: tmp_path / cls.__name__ for cls in (LlamaModel, LlamaForCausalLM, LlamaForQuestionAnswering)}
    for cls, folder in folders.items():
        randomized(cls(CONFIG)).save_pretrained(folder)
    weights = {cls: cls.from_pretrained(folder).base_model.state_dict() for cls, folder in folders.items()}
    heads = (LlamaForSequenceClassification, LlamaForQuestionAnswering, LlamaForReward, LlamaForEmbedding, LlamaModel)
    for source, folder in folders.items():
        for cls in heads:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = cls.from_pretrained(folder)
            report = model.load_report
            own = [name for name, _ in model.named_parameters() if name.startswith(("score", "qa_outputs"))]
            assert report.missing_keys == ([] if cls is source else own)
            assert len(caught) == (1 if report.missing_keys or report.unexpected_keys else 0)
            assert report.unexpected_keys == [
                name
                for name in {LlamaForCausalLM: ["lm_head.weight"], LlamaForQuestionAnswering: _answers()}.get(
                    source, []
                )
                if cls is not source
            ]
            for name, tensor in model.base_model.state_dict().items():
                assert torch.equal(tensor, weights[source][name]), name


def _answers() -> list[str]:
    return ["qa_outputs.bias", "qa_outputs.weight"]


def test_num_labels_is_a_choice_at_loading(tmp_path: Path) -> None:
    randomized(LlamaForCausalLM(CONFIG)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"score\.weight"):
        model = LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=9)
    assert model.score.weight.shape == (9, 24)
    assert model.config.id2label[8] == "LABEL_8"
    std = model.score.weight.std().item()
    assert 0.5 * CONFIG.initializer_range < std < 2 * CONFIG.initializer_range
