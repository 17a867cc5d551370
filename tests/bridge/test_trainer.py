"""transformers.Trainer on our models: the losses, gradients and weights of transformers' models, saved and read."""

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import llamita
from llamita.bridge.trainable import KINDS, trainable
from llamita.errors import NotFoundError, UsageError
from tests.small import CONFIG, byte_tokenizer

# Our files have the older spelling beside the newer, for old readers, and transformers 5 remarks on that.
pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
IDS = torch.randint(0, 256, (8, 12), generator=torch.Generator().manual_seed(1))
TEXTS = [
    {"input_ids": row, "labels": row.masked_fill(torch.arange(12) < number, -100)} for number, row in enumerate(IDS)
]
CLASSES = [{"input_ids": row, "labels": number % 2} for number, row in enumerate(IDS)]


@pytest.fixture(autouse=True, scope="module")
def modules_are_no_garbage() -> None:
    """Each training collects garbage: keep it from searching through all the libraries, half a second each time."""
    gc.collect()
    gc.freeze()


def train(model: Any, folder: Path, data: list[dict[str, Any]] = TEXTS, **options: Any) -> tuple[Any, list[Any]]:
    """A trainer after three steps, and the losses and norms of the gradients that it logged."""
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=3, per_device_train_batch_size=2, logging_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-3, **{"save_strategy": "no", **options},
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    return trainer, [(step["loss"], step["grad_norm"]) for step in trainer.state.log_history if "loss" in step]


def pair(folder: Path, name: str = "LlamaForCausalLM", **changes: Any) -> tuple[Any, Any]:
    """A model of ours, and transformers' of the same weights."""
    getattr(llamita, name)(CONFIG.replace(**changes)).save_pretrained(folder)
    return getattr(llamita, name).from_pretrained(folder), getattr(transformers, name).from_pretrained(folder)


def weights(model: Any) -> list[Tensor]:
    return list(model.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"gradient_accumulation_steps": 2}),
        ({}, {"activation_checkpointing": True}),
        ({}, {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}),
        ({"tie_word_embeddings": False}, {"label_smoothing_factor": 0.1}),
        ({}, {"bf16": True, "neftune_noise_alpha": 5.0}),
    ],
)
def test_three_steps_to_the_bit(changes: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "start", **changes)
    (mine, losses), (peer, expected) = (train(model, tmp_path / "run", **options) for model in (ours, theirs))
    assert losses == expected
    assert len(losses) == 3
    assert all(map(torch.equal, weights(ours), weights(theirs)))
    assert ours.config.use_cache is False
    same = "eval_loss" if "label_smoothing_factor" not in options else "eval_runtime"
    assert same in mine.evaluate(TEXTS[:4])
    if same == "eval_loss":
        assert mine.evaluate(TEXTS[:4])[same] == peer.evaluate(TEXTS[:4])[same]


def test_a_classifier_trains_alike(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "start", "LlamaForSequenceClassification")
    expected = train(theirs, tmp_path / "run", CLASSES)[1]
    assert train(ours, tmp_path / "run", CLASSES)[1] == expected


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_trainer_saves_is_a_checkpoint(tied: bool, tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "start", tie_word_embeddings=tied)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|eot_id|>", pad_token="<|pad|>"
    )
    trainer, losses = train(trainable(ours), tmp_path / "run", save_strategy="steps", save_steps=2)
    assert losses == train(theirs, tmp_path / "other")[1]
    trainer.processing_class = tokenizer
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-3"):
        for library in (llamita, transformers):
            again = library.LlamaForCausalLM.from_pretrained(folder)
            assert all(map(torch.equal, weights(again), weights(theirs)))
    assert llamita.LlamaForCausalLM.from_pretrained(tmp_path / "saved").config.architectures == ["LlamaForCausalLM"]
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_predictions_are_those_of_transformers(smoothing: float, tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "start")
    found = []
    for model in (trainable(ours), theirs):
        trainer, _ = train(model, tmp_path / "run", label_smoothing_factor=smoothing)
        found.append(trainer.predict(TEXTS[:4]))
    mine, expected = found
    assert (mine.predictions == expected.predictions).all() and mine.predictions.shape == (4, 12, 260)
    assert mine.metrics["test_loss"] == expected.metrics["test_loss"]
    output = ours(IDS)
    assert type(output) is type(theirs(IDS)) and list(output) == ["logits"]
    assert isinstance(ours(IDS, return_dict=False), tuple)


def test_a_trainer_aligns_the_ends_of_texts(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path / "start")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|pad|>", pad_token="<|pad|>"
    )
    for model in (ours, theirs):
        transformers.trainer_utils.align_special_tokens(model, tokenizer)
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)
        assert getattr(ours.generation_config, name) == getattr(theirs.generation_config, name)


def test_without_the_bridge_the_folder_says_what_is_missing(tmp_path: Path) -> None:
    ours, _ = pair(tmp_path / "start", tie_word_embeddings=False)
    train(ours, tmp_path / "run")[0].save_model(str(tmp_path / "saved"))
    with pytest.raises(
        NotFoundError, match=r"has no config\.json: transformers' Trainer writes none .*trainable\(model\)"
    ):
        llamita.LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    again = llamita.LlamaForCausalLM.from_pretrained(tmp_path / "saved", config=ours.config)
    assert all(map(torch.equal, weights(again), weights(ours)))


def test_trainable_models_are_both(tmp_path: Path) -> None:
    for kind, both in KINDS.items():
        model = trainable(kind(CONFIG))
        assert type(model) is both
        assert isinstance(model, kind)
        assert isinstance(model, transformers.PreTrainedModel)
        assert type(model).__name__ == kind.__name__
        assert type(both(CONFIG)) is both  # it can be made and read by itself, too
    assert trainable(model) is model
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is both
        assert all(map(torch.equal, weights(twin), weights(model)))
    with pytest.raises(UsageError, match=r"^Linear is no class of llamita's: make one of LlamaModel, LlamaForCausalLM"):
        trainable(torch.nn.Linear(1, 1))  # type: ignore[type-var]
